#!/bin/bash
# The quick tests: those that only compute on all cores, then, one after the other, those in which
# simulated robots and cameras keep time. Arguments go to pytest; with a path among them there is
# one plain run of it.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

python=.venv/bin/python
[ -x "$python" ] || python=python3
for argument in "$@"; do
    [ -e "${argument%%::*}" ] && exec "$python" -m pytest "$@"
done

timed=(tests/contract tests/drivers tests/ros tests/faults/test_hardware_faults.py)
log="$(mktemp)"
trap 'rm -f "$log"' EXIT
begun=$SECONDS status=0

run() {
    "$python" -m pytest "$@" 2>&1 | tee -a "$log"
    local code=${PIPESTATUS[0]}
    # 5: an option has left nothing to run here.
    [ "$code" -eq 0 ] || [ "$code" -eq 5 ] || status=$code
}

run tests "${timed[@]/#/--ignore=}" -n auto --maxprocesses 8 --dist loadfile "$@"
[ "$status" -eq 2 ] || run "${timed[@]}" "$@"

# One closing line for both, in pytest's words.
sed -E 's/\x1b\[[0-9;]*m//g' "$log" | grep -E '^=+ .* in [0-9.]+s.* =+$' |
    grep -oE '[0-9]+ (failed|errors?|passed|skipped|xfailed|xpassed|deselected|warnings?)' |
    awk -v took=$((SECONDS - begun)) '
        { sub(/^error$/, "errors", $2); sub(/^warning$/, "warnings", $2); count[$2] += $1 }
        END {
            n = split("failed errors passed skipped xfailed xpassed deselected warnings", order, " ")
            for (i = 1; i <= n; i++) if (order[i] in count)
                text = text (text == "" ? "" : ", ") count[order[i]] " " order[i]
            printf "=== %s in %d.00s (%d:%02d:%02d) ===\n", text == "" ? "no tests ran" : text,
                took, took / 3600, took % 3600 / 60, took % 60
        }'
exit "$status"
