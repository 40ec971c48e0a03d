#!/bin/sh
# Trains with two processes on this machine, to try a run of several out:
#     sh examples/launch/two_processes.sh --config=configs/digits.py --workdir=runs/two
# On CPUs both use the same cores. On GPUs give each its own: CUDA_VISIBLE_DEVICES=$process before python.
for process in 0 1; do
    python main.py --coordinator="localhost:${PORT:-54321}" --num_processes=2 --process_id=$process "$@" &
    processes="$processes $!"
done
trap : INT # which a terminal sends to both, too
trap 'kill $processes' TERM
status=0
for process in $processes; do
    wait "$process" || found=$?
    while kill -0 "$process" 2>/dev/null; do # a signal has ended the wait
        found=0
        wait "$process" || found=$?
    done
    [ "${found:-0}" = 0 ] || status=$found
done
exit "$status"
