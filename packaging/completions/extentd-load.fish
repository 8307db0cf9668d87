complete -c extentd-load -l socket-path -d 'Where the back-end listens' -r -F
complete -c extentd-load -l pattern -d 'What to do' -r -f -a "randread\t'Random reads'
randwrite\t'Random writes'
randrw\t'Random reads and writes, mixed by --read-percent'
read\t'Sequential reads'
write\t'Sequential writes'
churn\t'Random reads and writes in queue 0, while queue 1 discards and refills pieces of 1 MiB elsewhere on the disk'"
complete -c extentd-load -l size -d 'Bytes of a request: a multiple of 512, also with K or M' -r
complete -c extentd-load -l depth -d 'Requests in flight in each queue' -r
complete -c extentd-load -l queues -d 'Queues, each with its own part of the range [default: 1, for churn 2]' -r
complete -c extentd-load -l threads -d 'Client threads, each for a share of the queues [default: one per queue]' -r
complete -c extentd-load -l queue-size -d 'Entries of each ring: a power of two' -r
complete -c extentd-load -l read-percent -d 'Reads in randrw and in queue 0 of churn [default: 50, for churn 100]' -r
complete -c extentd-load -l pieces -d 'Where churn has its pieces: in the other half of the range, or every second MiB between the blocks of queue 0' -r
complete -c extentd-load -l churn-rate -d 'Most that churn discards and refills, in MiB a second' -r
complete -c extentd-load -l range -d 'Use only the first part of the disk: bytes, or with K, M, G or T' -r
complete -c extentd-load -l seconds -d 'Seconds that are counted' -r
complete -c extentd-load -l every -d 'Also report requests and the longest latency in each interval of so many seconds' -r
complete -c extentd-load -l warm-up -d 'Seconds before them that are not' -r
complete -c extentd-load -l cpu -d 'CPUs for the client\'s threads in turn, as in 0,2' -r
complete -c extentd-load -l cpu-of -d 'Also report the CPU time of this process, the back-end' -r
complete -c extentd-load -l verify -d 'Write into every block where it belongs and how often it was written, check all that is read, and read everything back at the end'
complete -c extentd-load -l sleep -d 'Sleep until an interrupt as a guest\'s driver does, instead of polling for completions (which falls back to interrupts while nothing comes)'
complete -c extentd-load -l json -d 'Report as JSON'
complete -c extentd-load -s h -l help -d 'Print help (see more with \'--help\')'
complete -c extentd-load -s V -l version -d 'Print version'
