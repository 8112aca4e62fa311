"""A server that heeds neither the end of its input nor SIGTERM, and has a child that is no better."""

import os
import signal

for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
if os.fork():
    os.write(1, b'{"jsonrpc":"2.0","method":"notifications/ready"}\n')
while True:
    signal.pause()
