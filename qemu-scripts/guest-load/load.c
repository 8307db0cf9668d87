/* A load generator that is a whole guest: no kernel, one CPU, a driver of virtio-blk that polls
   (virtio 1.2, modern PCI transport, one queue, indirect descriptors and EVENT_IDX if offered).

   The command line is a list of loads, as in "randread,4096,32,1000;write,131072,8,1000": pattern,
   bytes, depth, milliseconds. Each is told by two lines on the serial port, "begin N" and
   "end N requests nanoseconds p50 p99 p99.9 kicks bad" with latencies in nanoseconds; around each
   the guest rests for a moment, so that whoever reads them can look at the clocks of the host.
   Sectors hold their own number in their first 8 bytes: what is read is checked. */

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define START_INFO 0x200000ull

/* Guest-physical places of the ring, and of what each request has. */
#define DESCRIPTORS 0x500000ull
#define AVAIL 0x508000ull
#define USED 0x50c000ull
#define HEADERS 0x520000ull
#define TABLES 0x540000ull
#define DATA 0x2000000ull

#define MOST_DEPTH 256
#define REST_MS 40
#define STUCK_MS 20000

enum { NEXT = 1, WRITE = 2, INDIRECT = 4 };
enum { FEATURE_INDIRECT = 28, FEATURE_EVENT_IDX = 29, FEATURE_VERSION_1 = 32 };
enum { ACKNOWLEDGE = 1, DRIVER = 2, DRIVER_OK = 4, FEATURES_OK = 8 };

struct descriptor {
    u64 address;
    u32 length;
    u16 flags, next;
};

/* virtio_pci_common_cfg (virtio 1.2, 4.1.4.3). */
struct common {
    u32 device_feature_select, device_feature, driver_feature_select, driver_feature;
    u16 config_msix_vector, num_queues;
    u8 device_status, config_generation;
    u16 queue_select, queue_size, queue_msix_vector, queue_enable, queue_notify_off;
    u64 queue_desc, queue_driver, queue_device;
};

static u64 high; /* where physical memory is mapped */
static u64 ticks_per_ms;
static u64 sectors;
static u32 queue_size;
static int event_idx;
static volatile u16 *doorbell;
static u16 avail_index, used_index;
static u64 kicks;

static u64 began[MOST_DEPTH], first_sector[MOST_DEPTH];
/* Latencies in ticks: 16 steps for each power of two. */
static u32 histogram[64 * 16];

#define AT(type, place) ((volatile type *)(high + (place)))

static void out8(u16 port, u8 value) { asm volatile("outb %0, %1" ::"a"(value), "Nd"(port)); }
static void out32(u16 port, u32 value) { asm volatile("outl %0, %1" ::"a"(value), "Nd"(port)); }
static u32 in32(u16 port) {
    u32 value;
    asm volatile("inl %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}
static u64 clock(void) {
    u32 low, upper;
    asm volatile("rdtsc" : "=a"(low), "=d"(upper)::"memory");
    return low | (u64)upper << 32;
}
static void relax(void) { asm volatile("pause" ::: "memory"); }

static void say(const char *text) {
    while (*text)
        out8(0x3f8, *text++);
}
static void say_number(u64 number) {
    char digits[24], *at = digits + sizeof digits - 1;
    *at = 0;
    do
        *--at = '0' + number % 10;
    while (number /= 10);
    say(" ");
    say(at);
}
static void finish(const char *text) {
    say(text);
    say("\n");
    out8(0xf4, 0); /* isa-debug-exit */
    for (;;)
        relax();
}

static void rest(void) {
    for (u64 until = clock() + REST_MS * ticks_per_ms; clock() < until;)
        relax();
}

static u64 random_number(void) {
    static u64 state = 88172645463325252ull; /* xorshift64 (Marsaglia 2003) */
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

/* By ACPI's timer of 3.579545 MHz, of which PIIX4 has 24 bits at port 0x608. */
static void calibrate(void) {
    const u32 span = 178977; /* 50 ms */
    u32 from = in32(0x608), passed;
    u64 start = clock();
    do
        passed = (in32(0x608) - from) & 0xffffff;
    while (passed < span);
    ticks_per_ms = (clock() - start) * 3579545 / passed / 1000;
}

/* --- The device ------------------------------------------------------------------------------ */

static u32 pci_read(u32 slot, u32 at) {
    out32(0xcf8, 0x80000000u | slot << 11 | (at & 0xfc));
    return in32(0xcfc) >> 8 * (at & 3);
}
static void pci_write(u32 slot, u32 at, u32 value) {
    out32(0xcf8, 0x80000000u | slot << 11 | at);
    out32(0xcfc, value);
}

/* Where the capability at `at` points to. */
static u64 structure(u32 slot, u32 at) {
    u32 bar = 0x10 + 4 * (pci_read(slot, at + 4) & 0xff), low = pci_read(slot, bar);
    if ((low & 1) || ((low & 6) == 4 && pci_read(slot, bar + 4)))
        finish("FAIL the device is not in the first 4 GiB of memory");
    return high + (low & ~15u) + pci_read(slot, at + 8);
}

static void start_device(u32 slot) {
    volatile struct common *common = 0;
    u64 doorbells = 0, config = 0;
    u32 stride = 0;
    pci_write(slot, 4, pci_read(slot, 4) | 6); /* memory, bus master */
    for (u32 at = pci_read(slot, 0x34) & 0xff; at; at = pci_read(slot, at + 1) & 0xff) {
        if ((pci_read(slot, at) & 0xff) != 9)
            continue;
        switch (pci_read(slot, at + 3) & 0xff) {
        case 1:
            common = (volatile struct common *)structure(slot, at);
            break;
        case 2:
            doorbells = structure(slot, at);
            stride = pci_read(slot, at + 16);
            break;
        case 4:
            config = structure(slot, at);
            break;
        }
    }
    if (!common || !doorbells || !config)
        finish("FAIL the device is not a modern one");

    common->device_status = 0;
    while (common->device_status)
        relax();
    common->device_status = ACKNOWLEDGE | DRIVER;
    common->device_feature_select = 0;
    u32 wanted = common->device_feature & (1u << FEATURE_INDIRECT | 1u << FEATURE_EVENT_IDX);
    if (!(wanted >> FEATURE_INDIRECT & 1))
        finish("FAIL the device takes no indirect descriptors");
    event_idx = wanted >> FEATURE_EVENT_IDX & 1;
    common->driver_feature_select = 0;
    common->driver_feature = wanted;
    common->driver_feature_select = 1;
    common->driver_feature = 1u << (FEATURE_VERSION_1 - 32);
    common->device_status = ACKNOWLEDGE | DRIVER | FEATURES_OK;
    if (!(common->device_status & FEATURES_OK))
        finish("FAIL the device refuses the features");

    sectors = *(volatile u64 *)config;
    common->queue_select = 0;
    queue_size = common->queue_size < MOST_DEPTH ? common->queue_size : MOST_DEPTH;
    common->queue_size = queue_size;
    for (u64 at = DESCRIPTORS; at < TABLES + MOST_DEPTH * 64; at += 8)
        *AT(u64, at) = 0;
    *AT(u16, AVAIL) = 1; /* no interrupts */
    common->queue_desc = DESCRIPTORS;
    common->queue_driver = AVAIL;
    common->queue_device = USED;
    common->queue_msix_vector = 0xffff;
    doorbell = (volatile u16 *)(doorbells + stride * common->queue_notify_off);
    common->queue_enable = 1;
    common->device_status = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
}

/* --- Requests -------------------------------------------------------------------------------- */

/* Fills a slot's chain and puts it into the available ring; it is not published yet. */
static void add(u32 slot, u64 sector, u32 bytes, int writes) {
    u64 header = HEADERS + slot * 32, table = TABLES + slot * 64, data = DATA + (u64)slot * bytes;
    *AT(u32, header) = writes;
    *AT(u64, header + 8) = sector;
    *AT(u8, header + 16) = 0xff;
    volatile struct descriptor *chain = AT(struct descriptor, table);
    chain[0] = (struct descriptor){header, 16, NEXT, 1};
    chain[1] = (struct descriptor){data, bytes, writes ? NEXT : NEXT | WRITE, 2};
    chain[2] = (struct descriptor){header + 16, 1, WRITE, 0};
    AT(struct descriptor, DESCRIPTORS)[slot] = (struct descriptor){table, 48, INDIRECT, 0};
    AT(u16, AVAIL + 4)[avail_index++ & (queue_size - 1)] = slot;
}

/* Shows the device what was added since the index was `before`, and kicks if it wants that. */
static void publish(u16 before) {
    asm volatile("" ::: "memory");
    *AT(u16, AVAIL + 2) = avail_index;
    asm volatile("mfence" ::: "memory");
    u16 event = AT(u16, USED + 4)[4 * queue_size];
    int wanted = event_idx ? (u16)(avail_index - event - 1) < (u16)(avail_index - before)
                           : !(*AT(u16, USED) & 1);
    if (wanted) {
        *doorbell = 0;
        kicks++;
    }
}

static u32 bucket(u64 ticks) {
    if (ticks < 16)
        return ticks;
    int power = 63 - __builtin_clzll(ticks);
    return (power - 3) * 16 + (ticks >> (power - 4) & 15);
}

/* Nanoseconds that so many of 1000 requests took at most. */
static u64 percentile(u64 requests, u64 per_mille) {
    u64 wanted = requests * per_mille / 1000, seen = 0;
    for (u32 at = 0; at < sizeof histogram / sizeof *histogram; at++) {
        seen += histogram[at];
        if (seen > wanted) {
            u64 ticks = at < 16 ? at : (u64)(at % 16 + 17) << (at / 16 - 1);
            return ticks * 1000000 / ticks_per_ms;
        }
    }
    return 0;
}

struct load {
    int writes, random;
    u32 bytes, depth;
    u64 ms, position, bad;
};

static void next(struct load *load, u32 slot, u64 now) {
    u64 blocks = sectors / (load->bytes / 512);
    u64 block = load->random ? ((unsigned __int128)random_number() * blocks) >> 64
                             : load->position++ % blocks;
    u64 sector = block * (load->bytes / 512), data = DATA + (u64)slot * load->bytes;
    first_sector[slot] = sector;
    if (load->writes)
        for (u32 at = 0; at < load->bytes; at += 512)
            *AT(u64, data + at) = sector + at / 512;
    else
        *AT(u64, data) = *AT(u64, data + load->bytes - 512) = ~0ull;
    began[slot] = now;
    add(slot, sector, load->bytes, load->writes);
}

/* Takes the answer to a slot's request. */
static void check(struct load *load, u32 slot, u64 now) {
    u64 sector = first_sector[slot], data = DATA + (u64)slot * load->bytes;
    int right = *AT(u8, HEADERS + slot * 32 + 16) == 0;
    if (!load->writes)
        right = right && *AT(u64, data) == sector &&
                *AT(u64, data + load->bytes - 512) == sector + load->bytes / 512 - 1;
    load->bad += !right;
    histogram[bucket(now - began[slot])]++;
}

static void run(u32 number, struct load *load) {
    for (u32 at = 0; at < sizeof histogram / sizeof *histogram; at++)
        histogram[at] = 0;
    for (u64 at = 0; at < (u64)load->depth * load->bytes; at += 8)
        *AT(u64, DATA + at) = random_number(); /* does not compress */
    kicks = 0;
    say("begin");
    say_number(number);
    say("\n");
    rest();

    u64 start = clock(), now = start, done = 0;
    u16 before = avail_index;
    u32 in_flight = load->depth;
    for (u32 slot = 0; slot < load->depth; slot++)
        next(load, slot, now);
    publish(before);
    while (in_flight) {
        u16 shown;
        for (u64 spins = 1; (shown = *AT(u16, USED + 2)) == used_index; spins++) {
            relax();
            if (spins % (1 << 20) == 0 && clock() - now > STUCK_MS * ticks_per_ms)
                finish("FAIL no answer comes");
        }
        now = clock();
        before = avail_index;
        int goes_on = now - start < load->ms * ticks_per_ms;
        for (; used_index != shown; used_index++) {
            u32 slot = AT(u32, USED + 4)[2 * (used_index & (queue_size - 1))];
            if (slot >= load->depth)
                finish("FAIL an answer to nothing");
            check(load, slot, now);
            done++;
            if (goes_on)
                next(load, slot, now);
            else
                in_flight--;
        }
        AT(u16, AVAIL + 4)[queue_size] = used_index + 0x7fff; /* used_event: never */
        if (avail_index != before)
            publish(before);
    }
    now = clock();
    say("end");
    say_number(number);
    say_number(done);
    say_number((now - start) * 1000000 / ticks_per_ms);
    say_number(percentile(done, 500));
    say_number(percentile(done, 990));
    say_number(percentile(done, 999));
    say_number(kicks);
    say_number(load->bad);
    say("\n");
    rest();
}

static u64 number_at(const char **text) {
    u64 number = 0;
    while (**text >= '0' && **text <= '9')
        number = number * 10 + *(*text)++ - '0';
    if (**text == ',' || **text == ';')
        ++*text;
    return number;
}

/* Runs the loads of the command line; `mapped` is where physical memory is. */
void run_all(u64 mapped) {
    high = mapped;
    say("hello\n");
    calibrate();
    u32 slot = 0;
    while (slot < 32 && pci_read(slot, 0) != 0x10421af4u)
        slot++;
    if (slot == 32)
        finish("FAIL there is no virtio-blk device");
    start_device(slot);
    /* hvm_start_info: the command line's address is its fourth field of 8 bytes. */
    const char *text = (const char *)(high + *AT(u64, *AT(u32, START_INFO) + 24));
    for (u32 number = 0; *text >= 'a' && *text <= 'z'; number++) {
        struct load load = {.random = text[0] == 'r' && text[1] == 'a'};
        load.writes = text[load.random ? 4 : 0] == 'w';
        while (*text++ != ',')
            ;
        load.bytes = number_at(&text);
        load.depth = number_at(&text);
        load.ms = number_at(&text);
        if (!load.bytes || load.bytes % 512 || !load.depth || load.depth > queue_size)
            finish("FAIL a load makes no sense");
        run(number, &load);
    }
    finish("done");
}
