# Asks the program itself, so that it fits the one that is installed.
extentctl completions fish | source
