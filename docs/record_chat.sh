#!/usr/bin/env bash
# The picture of chat in a terminal, docs/chat.png, from a real conversation in tmux:
#
#   make demo && docs/record_chat.sh runs/demo/run docs/chat.png
#
# It needs tmux, a browser (CHROMIUM, default chromium), and gptoss-tune in the PATH or in COMMAND.
set -euo pipefail
run=${1:?the folder of a run}
picture=${2:-docs/chat.png}
command=${COMMAND:-gptoss-tune}
folder=$(mktemp -d)
server=record-chat-$$
terminal() { tmux -L "$server" "$@"; }
trap 'terminal kill-server 2>/dev/null || true; rm -rf "$folder"' EXIT

shown() { terminal capture-pane -p -S -; }
# Wait until a text stands on the screen a number of times.
until_shown() {
  for _ in $(seq 1 600); do
    [ "$(shown | grep -cF -- "$1" || true)" -ge "${2:-1}" ] && return
    sleep 0.2
  done
  shown
  echo "no '$1' on the screen" >&2
  exit 1
}
# Wait until the last line that is not empty is a prompt again.
until_prompt() {
  for _ in $(seq 1 600); do
    sleep 0.2
    [ "$(shown | sed '/^ *$/d' | tail -1 | tr -d ' ')" = ">" ] && return
  done
  shown
  echo "no prompt" >&2
  exit 1
}
say() { terminal send-keys -l -- "$1"; sleep 0.3; terminal send-keys Enter; }

# Answers are the likeliest ones, so that the picture is the same each time; nothing is kept.
line="$command chat $run --temperature 0 --max-new-tokens 400"
printf "PS1='$ '\n" >"$folder/rc"
terminal -f /dev/null new-session -d -x 92 -y 100 \
  -e TERM=xterm-256color -e GPTOSS_TUNE_NO_HISTORY=1 -e PYTHONPATH="${PYTHONPATH:-}" \
  "bash --rcfile '$folder/rc' -i"
sleep 1
terminal send-keys -l -- "$line"
terminal send-keys Enter
until_shown "/exit or Ctrl-D leaves"
until_prompt
say "/help"
until_prompt
say "Capital of France?"
until_prompt
say "/reset"
until_prompt
terminal set-buffer $'Translate "bread" into German.\nThen count to a thousand.'
terminal paste-buffer -p
sleep 0.3
said=$(shown | grep -c '^\[')
terminal send-keys Enter
for _ in $(seq 1 600); do
  [ "$(shown | grep -c '^\[')" -gt "$said" ] && break
  sleep 0.05
done
sleep "${STOP_AFTER_S:-0.2}"
terminal send-keys C-c
until_shown "[stopped by Ctrl-C"
until_prompt
say "/effort low"
until_prompt
say "/max-new-tokens 6"
until_prompt
say "/reset"
until_prompt
say "Who wrote Hamlet?"
until_shown "[cut after"
until_prompt
say "/tokens"
until_prompt
say "/exit"
sleep 1

terminal capture-pane -e -p -S - >"$folder/screen.ansi"
python3 "$(dirname "$0")/draw_terminal.py" "$folder/screen.ansi" "$folder/screen.html" >"$folder/size"
"${CHROMIUM:-chromium}" --headless --no-sandbox --disable-gpu --hide-scrollbars \
  --window-size="$(cat "$folder/size")" --screenshot="$picture" "file://$folder/screen.html" \
  2>"$folder/browser.log" || { cat "$folder/browser.log" >&2; exit 1; }
echo "$picture"
