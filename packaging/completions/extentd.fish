complete -c extentd -l socket-path -d 'Listen on this UNIX socket; a file left behind by a dead process is replaced' -r -F
complete -c extentd -l fd -d 'Use an inherited socket, listening or already connected (without either, systemd\'s LISTEN_FDS is used)' -r
complete -c extentd -l blk-file -d 'The image: a regular file or a block device' -r -F
complete -c extentd -l num-queues -d 'Queues offered, 1 to 256; those that a front-end does not use cost nothing' -r
complete -c extentd -l queue-size -d 'Largest ring accepted, in entries: a power of two, 16 to 32768' -r
complete -c extentd -l threads -d 'Worker threads [default: as many as CPUs, at most one per queue]' -r
complete -c extentd -l cpus -d 'Pin the worker threads to these CPUs in turn, as in 0-3,6' -r
complete -c extentd -l io-path -d 'How requests reach the image' -r -f -a "auto\t'The fastest way that is safe'
disk\t'Straight to the block device under the image'
file\t'Direct I/O on the image file'"
complete -c extentd -l poll-us -d 'How long a worker looks for work before it sleeps, in microseconds (0 never); auto learns it. Unless it is 0, a device with queues that never interrupt (io_poll) is polled while that pays' -r
complete -c extentd -l map-budget -d 'Memory that the map of the image\'s extents may take: bytes, or with K, M, G or T' -r
complete -c extentd -l pin-reserve -d 'Memory besides that for parts of the map that extentctl advise pin keeps: bytes, or with K, M, G or T' -r
complete -c extentd -l swap -d 'Be fit to swap on: the image is prepared, all memory is locked, nothing is allocated on the way. With =best-effort, go on where that is not possible' -r -f -a "demanded\t'Do not start unless every property holds'
best-effort\t'Go on, and show what does not hold'"
complete -c extentd -l serial -d 'Serial number that the guest sees, at most 20 printable ASCII characters' -r
complete -c extentd -l logical-block-size -d 'Block size that the guest sees [default: the block device\'s, else 512]' -r
complete -c extentd -l lock -d 'Keep other users of the image away while a guest uses it' -r
complete -c extentd -l limit -d 'Most requests and bytes per second, as in iops=1000,read-bytes=100M: iops, read-iops, write-iops, bytes, read-bytes, write-bytes, and each with burst- before it' -r
complete -c extentd -l limit-group -d 'Share the limits with all who have this file, on a tmpfs such as /run' -r -F
complete -c extentd -l on-enospc -d 'What becomes of writes for which the image\'s file system has no room' -r -f -a "hold\t'It waits, and is tried again'
report\t'The guest is told'"
complete -c extentd -l on-io-error -d 'What becomes of requests that the disk under the image fails' -r -f -a "hold\t'It waits, and is tried again'
report\t'The guest is told'"
complete -c extentd -l control-path -d 'Listen here for extentctl' -r -F
complete -c extentd -l metrics-listen -d 'Tell metrics over HTTP here, at /metrics: ADDRESS:PORT, PORT on loopback, or unix:PATH' -r
complete -c extentd -l snapshot-dir -d 'Snapshots go into this folder, on the image\'s file system: XFS or btrfs' -r -F
complete -c extentd -l sandbox -d 'Give up what is not needed once the disk is served: system calls, files, capabilities' -r
complete -c extentd -l log-level -d 'How much is logged; without it RUST_LOG says that, and without that it is info' -r -f -a "error\t'What went wrong'
warn\t'And what may'
info\t'And what happens'
debug\t'And what is of use when faults are looked for'
trace\t'And each message'"
complete -c extentd -l config -d 'Read further options from this TOML file: the same keys, without dashes; the command line wins' -r -F
complete -c extentd -l read-only -d 'Open the image for reading only and offer a read-only disk'
complete -c extentd -l pin-guest-memory -d 'Pin all guest memory and use it as registered buffers: less CPU time per request, but data are lost where the guest\'s memory is ballooned, reported free or unplugged by virtio-mem'
complete -c extentd -l print-capabilities -d 'Print what this back-end can do as JSON, and exit'
complete -c extentd -s h -l help -d 'Print help (see more with \'--help\')'
complete -c extentd -s V -l version -d 'Print version'
