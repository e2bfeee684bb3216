"""report.py ROUTE PID…: bench.sh's bursts (a line of JSON each, on standard input) as rows of its table, a row for each server.

With two servers, a line more: the median of the ratios of each pair of neighbouring bursts, the first server's to the second's,
with their quartiles.
"""
import json, statistics, sys

route, pids = sys.argv[1], sys.argv[2:]
runs = [json.loads(line) for line in sys.stdin]


def resident_mib(pid):
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) // 1024 for line in status if line.startswith("VmRSS"))


of = [[run for run in runs if run["server"] == server] for server in range(len(pids))]
for server, (bursts, pid) in enumerate(zip(of, pids)):
    median = lambda field: statistics.median(run[field] for run in bursts)
    print("| %s | %d | %d | %.1f | %.1f | %d | %.3f | %d |" % (route, server + 1, median("req_s"), median("p50_ms"),
          median("p99_ms"), sum(run["errors"] for run in bursts), median("cpu_ms"), resident_mib(pid)))
if len(pids) == 2 and len(of[0]) >= 2:
    for field, name in (("req_s", "rate"), ("cpu_ms", "CPU")):
        low, middle, high = statistics.quantiles([a[field] / b[field] for a, b in zip(*of)], n=4)
        print("| %s | 1 : 2 | %s %.3f (quartiles %.3f to %.3f) | | | | | |" % (route, name, middle, low, high))
