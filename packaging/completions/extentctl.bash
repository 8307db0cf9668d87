# Asks the program itself, so that it fits the one that is installed.
source <(extentctl completions bash)
