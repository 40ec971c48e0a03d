#!/bin/sh
# Trains with two processes on this machine, to try a run of several out:
#     sh examples/launch/two_processes.sh --config=configs/digits.py --workdir=runs/two
# On CPUs both use the same cores. On GPUs give each its own: CUDA_VISIBLE_DEVICES=$process before python.
trap 'kill 0' INT TERM # reaches both, and one of them would be enough
for process in 0 1; do
    python main.py --coordinator=localhost:54321 --num_processes=2 --process_id=$process "$@" &
    processes="$processes $!"
done
status=0
for process in $processes; do
    wait "$process" || status=$?
done
exit $status
