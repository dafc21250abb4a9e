"""llama.cpp's side of bench.py: llama-bench for a prompt and an answer, llama-server for many requests at once.

Give the folder that holds the programs, built for this machine. The weights are GGUF files written by `apus export`.
"""

import json
import os
import signal
import statistics
import subprocess
import threading
import time
import urllib.request

from ours import SHORT, result
from process import Failed, run, spawn

PORT = 18080


def bench(options, weights, prompt, count):
    """A prompt of so many tokens, or an answer of so many after an empty one."""
    output, memory = run(options, [options.llama_cpp / "llama-bench", "-m", weights, "-p", prompt, "-n", count, "-t", options.threads,
                                   "-r", options.steps, "-o", "json"])
    times = [nanoseconds / 1e9 for nanoseconds in json.loads(output)[-1]["samples_ns"]]
    return result([prompt + count] * len(times), times, 0.0, memory)


def request(prompt, count):
    body = {"prompt": prompt, "n_predict": count, "ignore_eos": True, "temperature": 0, "cache_prompt": False}
    post = urllib.request.Request(f"http://127.0.0.1:{PORT}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(post, timeout=600) as reply:
        return json.load(reply)["tokens_predicted"]


def all_at_once(prompts, count):
    """New tokens in all, and the seconds until the last request was answered."""
    done = []
    threads = [threading.Thread(target=lambda prompt=prompt: done.append(request(prompt, count))) for prompt in prompts]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(done) != len(prompts):
        raise Failed("llama-server did not answer every request")
    return sum(done), time.monotonic() - start


def ready():
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health", timeout=5) as reply:
            return json.load(reply).get("status") == "ok"
    except OSError:
        return False


def serve(options, weights, prompts, count, parallel):
    """Prompts at once to a server of its own; its thread for HTTP and ours ask little."""
    prompts = [json.loads(line)["prompt"] for line in prompts.read_text().splitlines()]
    start = time.monotonic()
    server = spawn(options, [options.llama_cpp / "llama-server", "-m", weights, "-t", options.threads, "-np", parallel, "-c", parallel * 512,
                             "--host", "127.0.0.1", "--port", PORT, "--no-webui"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not ready():
            if time.monotonic() - start > 60 or os.waitid(os.P_PID, server.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                raise Failed("llama-server did not start")
            time.sleep(0.05)
        started = time.monotonic() - start
        all_at_once(prompts, 1)
        rounds = [(all_at_once(prompts, SHORT), all_at_once(prompts, count)) for _ in range(max(1, options.steps // 3))]
    finally:
        server.send_signal(signal.SIGTERM)
        _, _, usage = os.wait4(server.pid, 0)
        server.returncode = 0
    counts = [long[0] - short[0] for short, long in rounds]
    return result(counts, [long[1] - short[1] for short, long in rounds], started, usage.ru_maxrss * 1024)


def version(options):
    output = subprocess.run([options.llama_cpp / "llama-bench", "--version"], capture_output=True, text=True)
    return next((line.split(":", 1)[1].strip() for line in (output.stdout + output.stderr).splitlines() if line.startswith("version")), "?")
