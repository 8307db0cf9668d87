complete -c extentd-nbd -l socket-path -d 'Listen here; only the same user and root may connect' -r -F
complete -c extentd-nbd -l fd -d 'Use the listening socket that was inherited under this number. Not needed for one that systemd hands over' -r
complete -c extentd-nbd -l file -d 'The snapshot, or an image that nobody writes' -r -F
complete -c extentd-nbd -l since -d 'Tell where it may differ from this older snapshot; given again, from one more' -r -F
complete -c extentd-nbd -l sandbox -d 'Give up system calls, files and capabilities that are not needed' -r
complete -c extentd-nbd -l log-level -d 'How much is logged [default: what RUST_LOG says, else info]' -r -f -a "error\t'What went wrong'
warn\t'And what may'
info\t'And what happens'
debug\t'And what is of use when faults are looked for'
trace\t'And each message'"
complete -c extentd-nbd -s h -l help -d 'Print help (see more with \'--help\')'
complete -c extentd-nbd -s V -l version -d 'Print version'
