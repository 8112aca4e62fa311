"""A server that heeds neither the end of its input nor SIGTERM, and has a child that is no better."""

import os
import signal
import subprocess
import sys
import time

for name in ("SIGTERM", "SIGINT", "SIGHUP"):
    if hasattr(signal, name):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
if len(sys.argv) == 1:
    subprocess.Popen([sys.executable, "-S", __file__, "child"], close_fds=False)
else:
    os.write(1, b'{"jsonrpc":"2.0","method":"notifications/ready"}\n')
while True:
    time.sleep(1000)
