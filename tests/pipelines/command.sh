#!/usr/bin/env bash
# What the house says of itself is true: every verb has help, every pipeline of configs/ and the README's is valid, the README's
# plugin compiles and is found. Usage: command.sh APUS ROOT FOLDER [CC]: the command, the checkout, a folder to write in, a compiler
# (none in a build with its plugins inside). A pipeline whose data is not there is skipped by name.
set -uo pipefail
apus=$1 root=$2 folder=$3 cc=${4:-}
bad=0
umask 022
rm -rf "$folder" && mkdir -p "$folder" && cd "$root" || exit 1
unset APUS_PLUGIN_PATH MODEL DATA TEXT HELD_OUT
wrong() {
    echo "wrong: $1"
    bad=1
}

help=$("$apus" --help) || wrong "apus --help fails"
verbs=$(sed -n 's/^  \([a-z]*\)  *[A-Za-z].*/\1/p' <<< "$help")
[ "$(wc -w <<< "$verbs")" = 14 ] || wrong "apus --help lists $(wc -w <<< "$verbs") verbs: $verbs"
for verb in $verbs; do
    text=$("$apus" "$verb" --help) || wrong "apus $verb --help fails"
    grep -q "^usage: apus $verb" <<< "$text" || wrong "apus $verb --help does not say how it is used"
    grep -q "\`$verb[ \`]" README.md || wrong "README.md does not name the verb $verb"
done
"$apus" --version | grep -q '^apus [0-9]' || wrong "apus --version"
"$apus" schema > "$folder/schema.json" || wrong "apus schema"
for kind in loss tuner optimizer stage tracker dataset format arch tokenizer sampler backend kernels; do
    "$apus" plugins "$kind" | grep -q . || wrong "apus plugins $kind says nothing"
done

for file in configs/*.yaml; do
    missing=$(grep -oE '\.\./shared/[^}"# ]*[^}"# .,]' "$file" | sort -u | while read -r path; do [ -e "$path" ] || echo "$path"; done)
    if [ -n "$missing" ]; then
        echo "skipped: $file:" $missing "is missing"
    else
        "$apus" check "$file" > "$folder/out" 2>&1 || wrong "$file: $(cat "$folder/out")"
    fi
done

# What cannot be printed is not thought to be.
"$apus" schema > /dev/full 2> "$folder/err"
[ $? = 3 ] && grep -qx 'apus: standard output: No space left on device' "$folder/err" || wrong "a full standard output: $(cat "$folder/err")"

# A setting of the backend that no weight of the model has a use for is said to have had none.
"$apus" score tests/golden/models/llama --ids 1,2,3 --activations int8 > /dev/null 2> "$folder/err" || wrong "score --activations int8: $(cat "$folder/err")"
grep -q '^apus: warning: cpu: activations: int8 had no effect' "$folder/err" || wrong "activations: int8 without a weight for it is silent"
"$apus" export tests/golden/models/llama --format gguf --dtype q8_0 --out "$folder/q8.gguf" > "$folder/out" 2>&1 || wrong "export as q8_0: $(cat "$folder/out")"
"$apus" score "$folder/q8.gguf" --ids 1,2,3 --activations int8 2>&1 > /dev/null | grep -q 'no effect' && wrong "activations: int8 is said to have no effect on Q8_0"

# Every element type that --dtype promises, and what was written says it.
for type in float32:F32 float16:F16 bfloat16:BF16; do
    for format in safetensors gguf; do
        out=$folder/${type%:*}.$format
        "$apus" export tests/golden/models/llama-tied --format $format --dtype ${type%:*} --out "$out" > "$folder/out" 2>&1 ||
            wrong "export --format $format --dtype ${type%:*}: $(cat "$folder/out")"
        [ -d "$out" ] && out=$out/model.safetensors
        "$apus" inspect "$out" | grep 'embd.weight\|embed_tokens.weight' | grep -qw "${type#*:}" || wrong "export --format $format --dtype ${type%:*} wrote another type"
    done
done

# The README's pipeline, with files that are there.
sed -n '/^```yaml$/,/^```$/p' README.md | grep -v '^```' > "$folder/readme.yaml"
echo '{"prompt": "a", "chosen": "b", "rejected": "c"}' > "$folder/rows.jsonl"
"$apus" check "$folder/readme.yaml" stages.align.model="$folder/rows.jsonl" stages.align.dataset.path="$folder/rows.jsonl" \
    stages.check.dataset.path="$folder/rows.jsonl" stages.answers.dataset.path="$folder/rows.jsonl" > "$folder/out" 2>&1 ||
    wrong "README.md's pipeline: $(cat "$folder/out")"

# The README's plugin.
if [ -n "$cc" ]; then
    sed -n '/^```c$/,/^```$/p' README.md | grep -v '^```' > "$folder/simpo.c"
    mkdir -p "$folder/mine"
    if "$cc" -std=c11 -Wall -Wextra -Wpedantic -Werror -shared -fPIC -fvisibility=hidden -Iabi "$folder/simpo.c" -o "$folder/mine/simpo.so"; then
        "$apus" --plugin-dir "$folder/mine" plugins simpo | grep -q 'gamma: float, default 1.0' || wrong "README.md's plugin is not explained"
        "$apus" --plugin-dir "$folder/mine" check "$folder/readme.yaml" stages.align.model="$folder/rows.jsonl" \
            stages.align.dataset.path="$folder/rows.jsonl" stages.check.dataset.path="$folder/rows.jsonl" \
            stages.answers.dataset.path="$folder/rows.jsonl" 'stages.align.loss={type: simpo, gamma: 0.5}' > /dev/null ||
            wrong "README.md's plugin cannot be named by a pipeline"
    else
        wrong "README.md's plugin does not compile"
    fi
fi
# Many prompts: each its line, in order; one that cannot be answered does not keep the others from it, and the exit code says so.
golden=tests/golden/models/llama
printf '%s\n' '{"input_ids": [1, 2, 3], "max_tokens": 4, "id": "one"}' '{"input_ids": [1, 2, 300]}' \
    '{"input_ids": [1, 2, 3], "max_tokens": 4, "temperature": -3}' '{"input_ids": [3], "max_tokens": 2, "seed": 5, "temperature": 1}' > "$folder/prompts.jsonl"
"$apus" generate $golden --prompts "$folder/prompts.jsonl" --parallel 3 --out "$folder/answers.jsonl" 2> "$folder/err" > "$folder/out"
[ $? = 1 ] || wrong "prompts of which some are wrong: not exit code 1"
[ -s "$folder/out" ] && wrong "generate --out writes on standard output"
grep -q "prompts.jsonl:2:1: prompt token 2: id 300 is outside" "$folder/err" || wrong "a prompt's place: $(cat "$folder/err")"
grep -q "prompts.jsonl:3:58: 'temperature' of sampler standard" "$folder/err" || wrong "a sampler's place: $(cat "$folder/err")"
grep -qE '^4 requests, 6 tokens in [0-9.]+ s' "$folder/err" || wrong "what many prompts came to: $(cat "$folder/err")"
got=$(sed -E 's/("id": [^,]*, "(text|error)").*/\1/' "$folder/answers.jsonl" | tr '\n' ' ')
[ "$got" = '{"id": "one", "text" {"id": 1, "error" {"id": 2, "error" {"id": 3, "text" ' ] || wrong "answers of many prompts: $got"
for n in 1 2 16; do
    "$apus" generate $golden --prompts "$folder/prompts.jsonl" --parallel $n --json > "$folder/answers$n" 2> /dev/null
    cmp -s "$folder/answers1" "$folder/answers$n" || wrong "--parallel $n changes answers"
done

# A plan tells what each training takes and all of it, of a model that is not made yet too, and writes nothing; an earlier run of the
# same training here is believed more than a timing.
cat > "$folder/plan.yaml" << END
run: $folder/planned
trackers: []
stages:
  - {name: first, stage: train, model: $golden, dataset: {type: tokens, path: $folder/tokens.jsonl}, tuner: full, batch_size: 2, max_steps: 40}
  - {name: second, stage: train, model: first, dataset: {type: tokens, path: $folder/tokens.jsonl}, batch_size: 2, max_steps: 10}
  - {name: measured, stage: eval, model: second, dataset: {type: tokens, path: $folder/tokens.jsonl}}
  - name: talker
    stage: train
    model:
      arch: decoder
      tokenizer: configs/byte-tokenizer
      config: {model_type: llama, vocab_size: 257, hidden_size: 16, intermediate_size: 16, num_hidden_layers: 1, num_attention_heads: 2}
    dataset: {path: $folder/words.jsonl}
    tuner: full
    max_steps: 1
  - {name: talk, stage: generate, model: talker, dataset: {path: $folder/words.jsonl}, max_tokens: 4}
  - {name: out, stage: export, model: second, format: safetensors, path: $folder/exported}
END
echo '{"text": "a b"}' > "$folder/words.jsonl"
printf '{"input_ids": [1, 2, 3, 4, 5, 6, 7, 8]}\n%.0s' 1 2 3 4 > "$folder/tokens.jsonl"
"$apus" plan "$folder/plan.yaml" > "$folder/out" 2>&1 || wrong "plan: $(cat "$folder/out")"
for line in '^first  *train  *about [0-9.]* s$' '^second .*about [0-9.]* s, with a model as' '40 steps of about 16 tokens, [0-9.e-]* s and' \
    '^measured  *eval  *about [0-9.]* s, with' '4 rows, 32 tokens$' '^talk  *generate  *at most [0-9.]* s, with' '1 answers of up to 4 tokens' \
    '^  *packed: [1-9][0-9]* weights as F32, [0-9.]* MiB$' \
    '^out  *export  *costs are not known' '^in all about [0-9.]* s, and what these take: out$'; do
    grep -q "$line" "$folder/out" || wrong "plan does not say '$line': $(cat "$folder/out")"
done
"$apus" plan "$folder/plan.yaml" stages.talk.dataset.type=messages 2>&1 | grep -q 'made by stage talker: costs are not known yet: .*' ||
    wrong "plan does not say why a stage's costs are not known"
[ -e "$folder/planned" ] && wrong "plan writes into the run folder"
"$apus" plan --json "$folder/plan.yaml" > "$folder/out" || wrong "plan --json"
grep -q 'apus.attention_cached/1' "$folder/out" || wrong "plan --json does not name the operations of a generator"
[ "$(grep -cE '"seconds(_per_step)?": [0-9.e-]*[1-9]' "$folder/out")" -ge 5 ] || wrong "plan --json has no times"
"$apus" run "$folder/plan.yaml" stages.first.max_steps=40 > "$folder/out" 2>&1 || wrong "what was planned does not run: $(cat "$folder/out")"
[ "$(grep -c '"layout": "micro-batches of up to 16 tokens' "$folder/planned/run.lock")" = 2 ] || wrong "run.lock does not say how the batches were cut"
sed -n '/"plans"/,$p' "$folder/planned/run.lock" > "$folder/out"
[ "$(grep -c '"kernels"' "$folder/out")" = 5 ] ||
    wrong "run.lock does not name the kernels of three trainings, an evaluation and a generator: $(cat "$folder/out")"
grep -A 12 '"talk"' "$folder/out" | grep -q '"lm_head.weight"' ||
    wrong "run.lock does not name the weights that a generator packed: $(cat "$folder/out")"
cp "$folder/planned/run.lock" "$folder/lock"
"$apus" run "$folder/plan.yaml" > "$folder/out" 2>&1
cmp -s "$folder/planned/run.lock" "$folder/lock" || wrong "run.lock of what is done is changed by another start"
"$apus" plan "$folder/plan.yaml" | grep -q '^in all about 0.0 s$' || wrong "plan of what is done"
"$apus" plan --force "$folder/plan.yaml" | grep -q 'as an earlier run of it on this machine went' || wrong "plan --force does not look at the earlier run"

# Which kernels are the fastest is measured, written and obeyed, the same way every time; where it is not true it is refused.
cat > "$folder/tune.yaml" << END
trackers: []
backend: {type: cpu, threads: 2}
stages:
  - {name: first, stage: train, model: $golden, dataset: {type: tokens, path: $folder/tokens.jsonl}, tuner: full, batch_size: 2, max_steps: 3}
  - {name: measured, stage: eval, model: $golden, dataset: {type: tokens, path: $folder/tokens.jsonl}}
END
tuning=$folder/here.yaml
"$apus" tune "$folder/tune.yaml" --out "$tuning" > "$folder/out" 2>&1 || wrong "tune: $(cat "$folder/out")"
grep -q "^written: $tuning$" "$folder/out" && grep -q "backend.tuning=$tuning" "$folder/out" || wrong "tune does not say what it wrote: $(cat "$folder/out")"
grep -q '^threads: 2$' "$tuning" || wrong "the tuning file does not say for how many threads: $(cat "$tuning")"
"$apus" check "$folder/tune.yaml" backend.tuning="$tuning" > "$folder/out" 2>&1 || wrong "check with a tuning file: $(cat "$folder/out")"
if "$apus" plugins onednn > "$folder/out" 2>&1; then
    grep -q 'use: ' "$tuning" || wrong "tune found nothing to choose: $(cat "$tuning")"
    sed -i 's/use: cpu/use: onednn/' "$tuning"
    "$apus" plan "$folder/tune.yaml" run="$folder/tuned0" backend.tuning="$tuning" > "$folder/out" 2>&1
    grep -q "^  *tuned by $tuning: [1-9][0-9]* kinds of product by onednn$" "$folder/out" || wrong "plan does not say what is tuned: $(cat "$folder/out")"
    for n in 1 2; do
        "$apus" run "$folder/tune.yaml" run="$folder/tuned$n" backend.tuning="$tuning" > "$folder/out" 2>&1 || wrong "a tuned run: $(cat "$folder/out")"
    done
    cmp -s "$folder"/tuned[12]/first/model/model.safetensors || wrong "a tuned run gives other bytes the second time"
    grep -q "$(sha256sum "$tuning" | cut -d' ' -f1)" "$folder/tuned1/run.lock" || wrong "run.lock does not hold the tuning file's sha256"
    grep -q '"apus.linear_dw/1: onednn"' "$folder/tuned1/run.lock" || wrong "run.lock does not name tuned kernels: $(cat "$folder/tuned1/run.lock")"
    "$apus" run "$folder/tune.yaml" run="$folder/tuned3" > "$folder/out" 2>&1 || wrong "an untuned run: $(cat "$folder/out")"
    for n in 1 3; do grep -o '"eval_loss": [^,]*' "$folder/tuned$n/measured/result.json" > "$folder/loss$n" || wrong "no loss of an evaluation"; done
    cmp -s "$folder"/loss[13] || wrong "a tuning file changes an evaluation"
    sed -i 's/use: onednn/use: cpu/' "$tuning"
    "$apus" plan "$folder/tune.yaml" run="$folder/tuned1" backend.tuning="$tuning" | grep -q 'done before' && wrong "another tuning file, and the stage is reused"
    "$apus" tune "$folder/tune.yaml" backend.dtype=bfloat16 --out "$folder/bf16.yaml" | grep -q '^kernels onednn do not serve this backend: ' ||
        wrong "tune does not say why oneDNN is out of it"
else
    grep -q '^choices: \[\]$' "$tuning" || wrong "tune without other plugins chooses: $(cat "$tuning")"
    echo "skipped: tuned runs: kernels onednn is not built"
fi
refused() { # exit code, what is said, file, overrides
    local code=$1 says=$2
    shift 2
    "$apus" check "$@" > "$folder/out" 2>&1
    [ $? = "$code" ] && grep -q "$says" "$folder/out" || wrong "not refused with $code and '$says': $(cat "$folder/out")"
}
refused 5 "made with threads: 2, this run has 1" "$folder/tune.yaml" backend.tuning="$tuning" backend.threads=1
refused 5 "made with products in F32, this run has BF16" "$folder/tune.yaml" backend.tuning="$tuning" backend.dtype=bfloat16
refused 1 "$folder/none.yaml: .*No such file" "$folder/tune.yaml" backend.tuning="$folder/none.yaml"
refused 1 "a tuning file needs\|unknown key" "$folder/tune.yaml" backend.tuning="$folder/tune.yaml"
"$apus" tune "$folder/none.yaml" > "$folder/out" 2>&1
[ $? = 1 ] || wrong "tune of a file that is not there: $(cat "$folder/out")"
"$apus" tune > "$folder/out" 2>&1
[ $? = 2 ] || wrong "tune of nothing: $(cat "$folder/out")"
exit $bad
