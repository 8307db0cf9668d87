#!/usr/bin/env python3
"""Drives a disk of extentd by libblkio; libblkio.sh has fetched the library and says where all is.

Each part says what it has seen; what is not as it has to be ends it with status 1.
"""

import argparse
import ctypes
import errno
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading

DRIVER = b"virtio-blk-vhost-user"
MIB = 1 << 20
SIZE = 64 * MIB
FUA = 1 << 0
NO_UNMAP = 1 << 1
# Longer than anything here may take; nothing is proved by it.
LIMIT = 60


class Region(ctypes.Structure):
    _fields_ = [
        ("addr", ctypes.c_void_p),
        ("len", ctypes.c_size_t),
        ("iova", ctypes.c_uint64),
        ("fd_offset", ctypes.c_int64),
        ("fd", ctypes.c_int),
        ("flags", ctypes.c_uint32),
    ]


class Completion(ctypes.Structure):
    _fields_ = [
        ("user_data", ctypes.c_void_p),
        ("error", ctypes.c_char_p),
        ("ret", ctypes.c_int),
        ("reserved", ctypes.c_uint8 * 12),
    ]


class Iovec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("len", ctypes.c_size_t)]


class Timespec(ctypes.Structure):
    _fields_ = [("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long)]


class Failed(Exception):
    """Something is not as it has to be."""


def check(holds, what):
    if not holds:
        raise Failed(what)


def load(path):
    library = ctypes.CDLL(path)
    library.blkio_get_error_msg.restype = ctypes.c_char_p
    library.blkio_get_queue.restype = ctypes.c_void_p
    library.blkio_get_poll_queue.restype = ctypes.c_void_p
    pointer, u64, size, u32 = ctypes.c_void_p, ctypes.c_uint64, ctypes.c_size_t, ctypes.c_uint32
    for name in ("read", "write"):
        getattr(library, f"blkioq_{name}").argtypes = [pointer, u64, pointer, size, pointer, u32]
        vector = getattr(library, f"blkioq_{name}v")
        vector.argtypes = [pointer, u64, pointer, ctypes.c_int, pointer, u32]
    for name in ("write_zeroes", "discard"):
        getattr(library, f"blkioq_{name}").argtypes = [pointer, u64, u64, pointer, u32]
    library.blkioq_flush.argtypes = [pointer, pointer, u32]
    library.blkioq_do_io.argtypes = [pointer, pointer, ctypes.c_int, ctypes.c_int, pointer]
    library.blkioq_set_completion_fd_enabled.argtypes = [pointer, ctypes.c_bool]
    return library


class Disk:
    """A connection, its queues, and one piece of memory for data."""

    def __init__(self, library, path, read_only=False):
        self.library = library
        self.handle = ctypes.c_void_p()
        self.must(library.blkio_create(DRIVER, ctypes.byref(self.handle)), "create")
        self.set_str("path", path)
        if read_only:
            self.set_str("read-only", "true")
        self.must(library.blkio_connect(self.handle), "connect")
        self.region = Region()
        self.queues = []

    def must(self, result, what):
        if result < 0:
            said = (self.library.blkio_get_error_msg() or b"").decode()
            raise Failed(f"{what}: {os.strerror(-result)}: {said}")

    def set_str(self, name, value):
        result = self.library.blkio_set_str(self.handle, name.encode(), str(value).encode())
        self.must(result, f"{name}={value}")

    def get(self, name):
        value = ctypes.c_char_p()
        result = self.library.blkio_get_str(self.handle, name.encode(), ctypes.byref(value))
        self.must(result, name)
        text = ctypes.string_at(value).decode()
        return {"true": True, "false": False}.get(text, int(text) if text.isdigit() else text)

    def start(self, queues=1, poll_queues=0, memory=8 * MIB, entries=None):
        self.set_str("num-queues", queues)
        self.set_str("num-poll-queues", poll_queues)
        if entries:
            self.set_str("queue-size", entries)
        self.must(self.library.blkio_start(self.handle), "start")
        self.region = self.memory(memory)
        get = self.library.blkio_get_queue
        self.queues = [Queue(self, get(self.handle, number)) for number in range(queues)]
        get = self.library.blkio_get_poll_queue
        self.queues += [Queue(self, get(self.handle, number)) for number in range(poll_queues)]
        return self.queues

    def memory(self, length):
        region = Region()
        place = ctypes.byref(region)
        self.must(self.library.blkio_alloc_mem_region(self.handle, place, ctypes.c_size_t(length)), "memory")
        self.must(self.library.blkio_map_mem_region(self.handle, place), "map")
        return region

    def free(self, region):
        self.library.blkio_unmap_mem_region(self.handle, ctypes.byref(region))
        self.library.blkio_free_mem_region(self.handle, ctypes.byref(region))

    def close(self):
        self.library.blkio_destroy(ctypes.byref(self.handle))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Queue:
    def __init__(self, disk, handle):
        self.disk = disk
        self.handle = handle
        self.waiting = 0

    def submit(self, name, *arguments, flags=0, tag=0):
        getattr(self.disk.library, f"blkioq_{name}")(self.handle, *arguments, tag, flags)
        self.waiting += 1

    def wait(self, seconds=LIMIT):
        """The results of all that was submitted, by tag; None where that took too long."""
        done = (Completion * max(self.waiting, 1))()
        results = {}
        while self.waiting:
            limit = Timespec(seconds, 0)
            count = self.disk.library.blkioq_do_io(self.handle, done, 1, self.waiting, ctypes.byref(limit))
            if count == -errno.ETIME:
                return None
            self.disk.must(count, "do_io")
            self.waiting -= count
            results.update((done[i].user_data or 0, done[i].ret) for i in range(count))
        return results

    def finish(self, what):
        results = self.wait()
        check(results is not None, f"{what}: no answer")
        check(not any(results.values()), f"{what}: {results}")

    def run(self, name, *arguments, flags=0):
        self.submit(name, *arguments, flags=flags)
        results = self.wait()
        check(results is not None, f"no answer to {name}")
        return results[0]

    def bytes_at(self, start, length):
        to = self.disk.region.addr
        check(self.run("read", start, to, length) == 0, f"reading {length} bytes at {start}")
        return ctypes.string_at(to, length)


class Manager:
    """What systemd is for extentd@.service: it listens, and keeps what a process leaves."""

    def __init__(self, binary, image, folder):
        self.binary, self.image, self.folder = binary, image, folder
        self.path = os.path.join(folder, "disk.sock")
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen()
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify.bind(os.path.join(folder, "notify"))
        self.stored = {}
        self.ready = 0
        self.turns = 0
        self.changed = threading.Condition()
        threading.Thread(target=self.hear, daemon=True).start()
        self.process = None

    def hear(self):
        while True:
            text, descriptors, _, _ = socket.recv_fds(self.notify, 4096, 1)
            lines = text.decode().splitlines()
            said = dict(line.split("=", 1) for line in lines if "=" in line)
            with self.changed:
                if "FDSTOREREMOVE" in said:
                    self.forget(said["FDNAME"])
                if "FDSTORE" in said:
                    self.forget(said["FDNAME"])
                    self.stored[said["FDNAME"]] = descriptors[0]
                if "BARRIER" in said:
                    os.close(descriptors[0])
                self.ready += said.get("READY") == "1"
                self.turns += "TURN" in said
                self.changed.notify_all()

    def forget(self, name):
        descriptor = self.stored.pop(name, None)
        if descriptor is not None:
            os.close(descriptor)

    def forget_all(self):
        with self.changed:
            for name in list(self.stored):
                self.forget(name)

    def until(self, holds, what):
        with self.changed:
            check(self.changed.wait_for(holds, LIMIT), f"waited for {what}")

    def start(self, *arguments):
        ready = self.ready
        kept = list(self.stored.items())[-1:]
        redirect = "exec 3<&0 4<&1 0</dev/null 1>&2" if kept else "exec 3<&0 0</dev/null"
        script = f'{redirect}; export LISTEN_PID=$$; exec "$0" "$@"'
        environment = os.environ | {
            "LISTEN_FDS": str(1 + len(kept)),
            "LISTEN_FDNAMES": ":".join(["extentd.socket"] + [name for name, _ in kept]),
            "NOTIFY_SOCKET": os.path.join(self.folder, "notify"),
            "FDSTORE": "4",
        }
        self.process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "sh", "-c", script, self.binary, "--blk-file", self.image]
            + ["--log-level", "warn", *arguments],
            stdin=self.listener,
            stdout=kept[0][1] if kept else subprocess.DEVNULL,
            env=environment,
        )
        self.until(lambda: self.ready > ready, "extentd to be ready")

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(LIMIT)
        check(status == 0, f"extentd ended with {status}")
        # All that it has sent was taken when this is.
        turns = self.turns
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as turn:
            turn.connect(os.path.join(self.folder, "notify"))
            turn.send(b"TURN=1")
        self.until(lambda: self.turns > turns, "what extentd has sent")
    def kill(self):
        self.process.kill()
        self.process.wait(LIMIT)


def properties(library, manager):
    with Disk(library, manager.path) as disk:
        check(disk.get("capacity") == SIZE, "the capacity")
        check(disk.get("read-only") is False, "it is not read-only")
        check(disk.get("max-queues") >= 4, "the queues")
        names = ["max-queues", "max-segments", "max-mem-regions", "max-discard-len", "max-write-zeroes-len"]
        print("properties:", ", ".join(f"{name} {disk.get(name)}" for name in names))


def mixed(library, manager, seed):
    """Each queue has a part of the disk, and compares what it reads with what it has written."""
    chance = random.Random(seed)
    counts = {}
    with Disk(library, manager.path) as disk:
        queues = disk.start(queues=4, poll_queues=2)
        part = 10 * MIB
        image = bytearray(SIZE)
        for turn in range(240):
            number = turn % len(queues)
            queue, base = queues[number], number * part
            memory = disk.region.addr + number * MIB
            # A batch of requests that do not overlap, then their answers.
            slots = chance.sample(range(part // (64 << 10)), 8)
            reads = []
            for tag, slot in enumerate(slots):
                start = base + slot * (64 << 10) + 512 * chance.randrange(64)
                length = 512 * chance.randint(1, 64)
                at = memory + tag * (64 << 10)
                kind = chance.choice(["read", "write", "writev", "write_zeroes", "discard", "fua", "flush"])
                counts[kind] = counts.get(kind, 0) + 1
                if kind == "read":
                    ctypes.memset(at, 0xAA, length)
                    queue.submit("read", start, at, length, tag=tag)
                    reads.append((start, at, length))
                elif kind in ("write", "fua"):
                    data = chance.randbytes(length)
                    ctypes.memmove(at, data, length)
                    queue.submit("write", start, at, length, flags=FUA if kind == "fua" else 0, tag=tag)
                    image[start : start + length] = data
                elif kind == "writev":
                    data = chance.randbytes(length)
                    ctypes.memmove(at, data, length)
                    pieces = (Iovec * 3)()
                    cuts = sorted(chance.randrange(length + 1) for _ in range(2))
                    ends = [0, *cuts, length]
                    for i in range(3):
                        pieces[i] = Iovec(at + ends[i], ends[i + 1] - ends[i])
                    used = [piece for piece in pieces if piece.len]
                    vector = (Iovec * len(used))(*used)
                    queue.submit("writev", start, ctypes.addressof(vector), len(used), tag=tag)
                    queue.finish("a vector")
                    image[start : start + length] = data
                elif kind == "write_zeroes":
                    flags = chance.choice([0, NO_UNMAP])
                    queue.submit("write_zeroes", start, length, flags=flags, tag=tag)
                    image[start : start + length] = bytes(length)
                elif kind == "discard":
                    # What a discarded range reads as is not promised; it is written next.
                    queue.submit("discard", start, length, tag=tag)
                    queue.finish("a discard")
                    check(queue.run("write_zeroes", start, length) == 0, "zeroes after a discard")
                    image[start : start + length] = bytes(length)
                else:
                    queue.submit("flush", tag=tag)
            queue.finish(f"turn {turn}")
            for start, at, length in reads:
                same = ctypes.string_at(at, length) == image[start : start + length]
                check(same, f"turn {turn}: what was read at {start}")
        check(queues[0].run("flush") == 0, "the last flush")
    with open(manager.image, "rb") as file:
        check(file.read() == image, "the image has what was written")
    said = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
    print(f"4 queues and 2 that are polled (seed {seed}): {said}; all compared")


def sizes(library, manager):
    for entries in (16, 128, 1024, 32768):
        with Disk(library, manager.path) as disk:
            queue = disk.start(entries=entries)[0]
            for tag in range(200):
                queue.submit("write", 512 * tag, disk.region.addr, 512, tag=tag)
            queue.finish(f"a ring of {entries}")
    print("rings of 16 to 32768 entries, more requests than fit")


def memory_comes_and_goes(library, manager):
    with Disk(library, manager.path) as disk:
        queue = disk.start()[0]
        for turn in range(50):
            region = disk.memory((turn + 1) * 4096)
            ctypes.memset(region.addr, turn, region.len)
            check(queue.run("write", 0, region.addr, region.len) == 0, "a write from new memory")
            disk.free(region)
            check(queue.bytes_at(0, 4096) == bytes([turn]) * 4096, "what new memory had")
    print("50 regions of memory, mapped and unmapped while the queue runs")


def refusals(library, manager):
    with Disk(library, manager.path) as disk:
        queue = disk.start()[0]
        at = disk.region.addr
        check(queue.run("read", SIZE, at, 512) == -errno.EIO, "a read beyond the end")
        check(queue.run("write", SIZE - 512, at, 1024) == -errno.EIO, "a write beyond the end")
        check(queue.run("read", 0, at, 100) == -errno.EIO, "a read of no whole sectors")
        check(queue.run("read", 0, at, 512) == 0, "a read after that")
    print("requests that do not fit fail alone")


def restarts(library, manager):
    with Disk(library, manager.path) as disk:
        queue = disk.start()[0]
        ends = threading.Event()
        failed, rounds = [], [0]

        def load():
            try:
                while not ends.is_set():
                    for tag in range(16):
                        mark = bytes([rounds[0] % 251]) * 4096
                        ctypes.memmove(disk.region.addr + 4096 * tag, mark, 4096)
                        queue.submit("write", MIB + 4096 * tag, disk.region.addr + 4096 * tag, 4096, tag=tag)
                    queue.finish(f"round {rounds[0]}")
                    rounds[0] += 1
            except Failed as failure:
                failed.append(failure)

        writer = threading.Thread(target=load)
        writer.start()
        for _ in range(5):
            manager.stop()
            check(manager.stored, "a process leaves the connection")
            manager.start()
            seen = rounds[0]
            while rounds[0] == seen and writer.is_alive():
                os.sched_yield()
        ends.set()
        writer.join()
        check(not failed, failed and failed[0])
        mark = bytes([(rounds[0] - 1) % 251]) * 4096
        check(all(queue.bytes_at(MIB + 4096 * tag, 4096) == mark for tag in range(16)), "the last round")
    print(f"5 restarts under load, as systemctl restart does them: {rounds[0]} rounds of 16 writes, none lost")


def kill(library, manager):
    with Disk(library, manager.path) as disk:
        queue = disk.start()[0]
        check(queue.run("read", 0, disk.region.addr, 512) == 0, "a read")
        manager.kill()
        manager.forget_all()
        manager.start()
        queue.submit("read", 0, disk.region.addr, 512)
        check(queue.wait(2) is None, "libblkio has learnt to connect again; say so in docs/frontends.md")
    with Disk(library, manager.path) as disk:
        check(disk.start()[0].run("read", 0, disk.region.addr, 512) == 0, "a read by the next one")
    print("after a kill the next connection is served; the one before gets no answer and no error")


def read_only(library, manager):
    manager.stop()
    manager.forget_all()
    manager.start("--read-only")
    with Disk(library, manager.path) as disk:
        try:
            disk.start()
        except Failed as failure:
            print(f"a read-only disk without read-only=true: {failure}")
    with Disk(library, manager.path, read_only=True) as disk:
        queue = disk.start()[0]
        check(queue.run("read", 0, disk.region.addr, 512) == 0, "a read")
        check(queue.run("write", 0, disk.region.addr, 512) == -errno.EBADF, "a write")
    print("a read-only disk")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--library", required=True, help="libblkio.so.1")
    parser.add_argument("--extentd", required=True)
    parser.add_argument("--folder", required=True, help="where the image goes")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    options = parser.parse_args()
    library = load(options.library)
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="libblkio.") as folder:
        image = os.path.join(folder, "disk.img")
        with open(image, "wb") as file:
            file.truncate(SIZE)
        manager = Manager(options.extentd, image, folder)
        manager.start()
        try:
            properties(library, manager)
            mixed(library, manager, options.seed)
            for part in (sizes, memory_comes_and_goes, refusals, restarts, kill, read_only):
                part(library, manager)
            manager.stop()
        except Failed as failure:
            print(f"libblkio.py: {failure}", file=sys.stderr)
            return 1
        finally:
            manager.kill()
    return 0


if __name__ == "__main__":
    sys.exit(main())
