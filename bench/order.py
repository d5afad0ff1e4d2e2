#!/usr/bin/env python3
"""Writes crates/cli/executor.order: the functions that an executor runs.

    bench/order.py SECONDS target/release/ah agent enroll --remote-server=https://… > crates/cli/executor.order

Runs the program for that long with a breakpoint on each of its functions, of which each is removed when it is met: start an
access point before, and let the executor enroll and send heartbeats. Linux on x86_64; needs readelf and no debug information.
"""

import collections
import ctypes
import os
import re
import signal
import subprocess
import sys
import time

TRACEME, CONT, GETREGS, SETREGS, SETOPTIONS = 0, 7, 12, 13, 0x4200
TRACECLONE, EXITKILL = 1 << 3, 1 << 20
WALL = 0x40000000
RIP = 16
TRAP_CODE = b"\xcc"
# What the kernel maps around a page. Functions of one name, which differ by their types alone, are taken together, unless
# those that do not run have more than this for each that does.
AROUND = 64 * 1024
# Cryptography unrolled for many blocks at a time, of which one is used.
LARGEST = 100_000

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


def functions(program):
    """Address to size and name."""
    found = {}
    for line in subprocess.check_output(["readelf", "-sW", program], text=True).splitlines():
        field = line.split()
        if len(field) >= 8 and field[3] == "FUNC" and int(field[1], 16) and int(field[2], 0):
            found[int(field[1], 16)] = (int(field[2], 0), field[7])
    return found


def lasting(name):
    """What of a name is the same in the next build, as the linker matches it."""
    name = re.sub(r"\.llvm\.\d+$", "", name)
    name = re.sub(r"17h[0-9a-f]{16}E.*$", "17h", name)
    return re.sub(r"Cs[0-9a-zA-Z]+_", "Cs*_", name)


def met(seconds, command, addresses):
    """Which of the addresses ran."""
    child = os.fork()
    if child == 0:
        os.dup2(2, 1)
        libc.ptrace(TRACEME, 0, None, None)
        os.execv(command[0], command)
    os.waitpid(child, 0)
    libc.ptrace(SETOPTIONS, child, None, TRACECLONE | EXITKILL)
    program = os.path.realpath(command[0])
    with open(f"/proc/{child}/maps") as maps:
        base = next(int(line.split("-")[0], 16) for line in maps if line.rstrip().endswith(program))
    memory = os.open(f"/proc/{child}/mem", os.O_RDWR)
    was = {}
    for address in addresses:
        was[address] = os.pread(memory, 1, base + address)
        os.pwrite(memory, TRAP_CODE, base + address)
    seen = set()
    registers = (ctypes.c_ulong * 27)()
    libc.ptrace(CONT, child, None, None)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        task, status = os.waitpid(-1, WALL | os.WNOHANG)
        if task == 0:
            time.sleep(0.001)
            continue
        if not os.WIFSTOPPED(status):
            if task == child:
                sys.exit(f"the program ended: {status}")
            continue
        passed = os.WSTOPSIG(status)
        if passed == signal.SIGTRAP and status >> 16 == 0:
            libc.ptrace(GETREGS, task, None, registers)
            address = registers[RIP] - 1 - base
            if address in was:
                seen.add(address)
                os.pwrite(memory, was[address], base + address)
                registers[RIP] -= 1
                libc.ptrace(SETREGS, task, None, registers)
        libc.ptrace(CONT, task, None, None if passed in (signal.SIGTRAP, signal.SIGSTOP) else passed)
    os.kill(child, signal.SIGKILL)
    return seen


def main():
    seconds, command = float(sys.argv[1]), sys.argv[2:]
    known = functions(command[0])
    seen = met(seconds, command, known)
    total, ran, times = collections.Counter(), collections.Counter(), collections.Counter()
    for address, (size, name) in known.items():
        total[lasting(name)] += size
        if address in seen:
            ran[lasting(name)] += size
            times[lasting(name)] += 1
    names = [n for n in sorted(ran) if total[n] - ran[n] < AROUND * times[n] and ran[n] < LARGEST * times[n]]
    print(
        f"{len(seen)} of {len(known)} functions ran, {sum(ran.values()) // 1024} KiB;"
        f" {len(names)} names, {sum(total[name] for name in names) // 1024} KiB",
        file=sys.stderr,
    )
    print("\n".join(names))


main()
