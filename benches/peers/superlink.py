"""A round through Flower's SuperLink and SuperNodes on loopback: superlink.py UPDATE.safetensors CLIENTS ROUNDS

Two clients a SuperNode, which spares the machine memory; the server sees every update. Server means SuperLink and what it
starts. At most three rounds are run, because each takes about a minute, and the first is left out as everywhere.
Prints one JSON object like flower.py. Needs `psutil` beside `flwr`.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import psutil

UPDATE, CLIENTS, ROUNDS = os.path.abspath(sys.argv[1]), int(sys.argv[2]), min(int(sys.argv[3]), 3)
EACH = 2 if CLIENTS % 2 == 0 else 1
NODES = CLIENTS // EACH
PORT, FLEET, CONTROL, NODE = 18570, 18571, 18572, 18600
PATIENCE = 1500
BIN = os.path.dirname(sys.executable)
APP = os.path.join(os.path.dirname(os.path.abspath(__file__)), "superlink_app")


class Watch(threading.Thread):
    """Adds up CPU and memory of a process and all that it starts."""

    def __init__(self, pid):
        super().__init__(daemon=True)
        self.pid, self.samples, self.peak, self.last = pid, [], 0, {}

    def run(self):
        while True:
            memory = 0
            for process in family(self.pid):
                try:
                    times = process.cpu_times()
                    self.last[process.pid] = times.user + times.system
                    memory += process.memory_info().rss
                except psutil.Error:
                    pass
            self.peak = max(self.peak, memory)
            self.samples.append((time.time(), sum(self.last.values())))
            time.sleep(0.1)

    def cpu_at(self, at):
        return next((cpu for when, cpu in self.samples if when >= at), self.samples[-1][1])


def family(pid):
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []


def measure(home):
    env = dict(os.environ, FLWR_HOME=home, FLWR_TELEMETRY_ENABLED="0", FLWR_DISABLE_UPDATE_CHECK="1")
    env["PATH"] = BIN + ":" + env["PATH"]
    with open(os.path.join(home, "config.toml"), "w", encoding="utf-8") as file:
        file.write(f'[superlink]\ndefault = "b"\n[superlink.b]\naddress = "127.0.0.1:{PORT}"\ninsecure = true\n')
    out, started = os.path.join(home, "rounds"), []

    def start(program, *arguments):
        log = open(os.path.join(home, f"log-{len(started)}"), "w", encoding="utf-8")
        command = [os.path.join(BIN, program), "--insecure", *arguments]
        started.append(subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True))

    def events():
        if not os.path.exists(out):
            return []
        with open(out, encoding="utf-8") as file:
            return [json.loads(line) for line in file if line.endswith("\n")]

    try:
        api = ["--fleet-api-address", f"127.0.0.1:{FLEET}", "--control-api-address", f"127.0.0.1:{CONTROL}"]
        offline = "--disable-runtime-dependency-installation"
        start("flower-superlink", "--host", "127.0.0.1", "--port", str(PORT), offline, *api)
        time.sleep(6)
        for node in range(NODES):
            start("flower-supernode", "--superlink", f"127.0.0.1:{PORT}", "--port", str(NODE + node))
        watch = Watch(started[0].pid)
        watch.start()
        config = f"update='{UPDATE}' out='{out}' nodes={NODES} each={EACH} rounds={ROUNDS}"
        run = [os.path.join(BIN, "flwr"), "run", APP, "b", "-c", config]
        said = subprocess.run(run, env=env, capture_output=True, text=True, timeout=120, check=False)
        print(said.stdout, said.stderr, file=sys.stderr)
        begun = time.time()
        while not any(event["event"] == "done" for event in events()):
            if time.time() - begun > PATIENCE:
                raise TimeoutError("the rounds do not end")
            time.sleep(0.5)
    finally:
        for process in started:
            for member in family(process.pid):
                try:
                    member.send_signal(signal.SIGKILL)
                except psutil.Error:
                    pass
            process.wait()
    taken = []
    for end in (event for event in events() if event["event"] == "end" and event["round"] > 1):
        assert end["updates"] == CLIENTS and end["failed"] == 0, end
        begin = next(e for e in events() if e["event"] == "begin" and e["round"] == end["round"])
        taken.append((end["at"] - begin["at"], watch.cpu_at(end["at"]) - watch.cpu_at(begin["at"])))
    wall, cpu = (statistics.median(column) for column in zip(*taken))
    print(json.dumps({"wall_s": wall, "cpu_s": cpu, "peak_bytes": watch.peak}))


with tempfile.TemporaryDirectory() as folder:
    measure(folder)
