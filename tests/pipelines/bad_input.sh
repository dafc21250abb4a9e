#!/usr/bin/env bash
# Wrong configurations, damaged files and untrusted plugins through the real command. Each must end with its exit code and exactly
# one message (`apus: …`, at most one hint below it), which says what is expected here; none may crash, hang or leak.
# Usage: bad_input.sh APUS FOLDER GOLDEN CORPUS [CASES]: the command, a folder to write in, tests/golden, tests/fuzz/corpus, the built
# plugins of tests/core/module (none in a build with its plugins inside).
set -uo pipefail
apus=$1 folder=$2 golden=$3 corpus=$4 cases=${5:-}
count=0 bad=0
umask 022
rm -rf "$folder" && mkdir -p "$folder" && cd "$folder" || exit 1
export APUS_CACHE=$folder/cache
unset APUS_PLUGIN_PATH APUS_LOG

# c CODE TEXT VERB ARGUMENTS…: what must come of one command line.
c() {
    local code=$1 text=$2 got lines
    shift 2
    count=$((count + 1))
    rm -rf run # a folder of the case before would be set aside, and that is said
    timeout -k 5 120 "$apus" "$@" > out.txt 2> err.txt < /dev/null
    got=$?
    lines=$(grep -vcE '^  hint: |^==[0-9]+==WARNING: AddressSanitizer failed to allocate' err.txt) # the second: not ours
    if [ "$got" != "$code" ] || [ "$lines" != 1 ] || ! grep -qE '^apus( [a-z]+)?: ' err.txt || ! grep -qF -- "$text" err.txt ||
        [ "$(grep -cE '^  hint: ' err.txt)" -gt 1 ]; then
        bad=$((bad + 1))
        echo "case $count: apus $*"
        echo "  expected exit code $code and one line with: $text"
        echo "  exit code $got:"
        sed 's/^/  | /' err.txt | head -20
    fi
}
# f NAME: standard input becomes the file.
f() { cat > "$1"; }
# u64 N, u32 N: little-endian bytes, as model files have them.
u64() { local i n=$1 s=""; for i in 1 2 3 4 5 6 7 8; do s+=$(printf '\\x%02x' $((n & 255))); n=$((n >> 8)); done; printf '%b' "$s"; }
u32() { local i n=$1 s=""; for i in 1 2 3 4; do s+=$(printf '\\x%02x' $((n & 255))); n=$((n >> 8)); done; printf '%b' "$s"; }
# st HEADER BYTES: a safetensors file of that header and as many zero bytes.
st() { u64 ${#1}; printf '%s' "$1"; head -c "$2" /dev/zero; }

# ------------------------------------------------------------ a sound pipeline, from which most cases differ by one key
f rows.jsonl <<< '{"input_ids": [1, 2, 3, 4]}'
f pairs.jsonl <<< '{"prompt": "a", "chosen": "b", "rejected": "c"}'
f good.yaml << 'END'
run: run
backend: ref
trackers: []
stages:
  - name: base
    stage: train
    model:
      arch: decoder
      config: {vocab_size: 8, hidden_size: 8, intermediate_size: 8, num_hidden_layers: 1, num_attention_heads: 2}
    dataset: {type: tokens, path: rows.jsonl}
    tuner: full
    optimizer: {type: adamw, learning_rate: 1.0e-3}
    batch_size: 1
    max_steps: 1
  - {name: out, stage: export, model: base, path: out}
END
timeout 60 "$apus" check good.yaml > /dev/null || { echo "the sound pipeline is refused"; exit 1; }

# ------------------------------------------------------------ command lines
c 2 "there is no verb 'fly'" fly
c 2 'which FILE' run
c 2 'which MODEL' tokenize
c 2 'one MODEL, not 2 words' tokenize "$golden/models/llama" hello
c 2 'key.path=value' run good.yaml oops
c 2 'there is no option --fast' check good.yaml --fast
c 2 '--text needs a value' score --text
c 2 'give --prompt TEXT or --messages FILE' generate "$golden/models/llama"
c 2 '--out and --parallel go with --prompts' generate "$golden/models/llama" --prompt a --parallel 2
c 2 "--parallel takes a whole number from 1 to 4096, not '0'" generate "$golden/models/llama" --prompts p.jsonl --parallel 0
c 2 "not 'many'" generate "$golden/models/llama" --prompts p.jsonl --parallel many
c 2 "--max-tokens takes a whole number from 1 to 1000000000, not '12x'" generate "$golden/models/llama" --prompt a --max-tokens 12x
c 2 "--seed takes a whole number" generate "$golden/models/llama" --prompt a --seed -1
c 2 "--top-p takes a number, not 'hot'" generate "$golden/models/llama" --prompt a --top-p hot
c 2 '--json takes no value' plan good.yaml --json=yes
c 2 "--rows takes a whole number" preview good.yaml --rows all
c 2 '--ids takes numbers' score "$golden/models/llama" --ids 1,b
c 1 'nowhere: no such file' generate nowhere --prompt a
c 1 'no stage of a run' score run:nobody --ids 1,2

# ------------------------------------------------------------ a file of prompts
n=0
p() {
    n=$((n + 1))
    printf '{"input_ids": [1], "max_tokens": 1}\n\n%s\n' "$2" > "prompts$n.jsonl"
    c 1 "prompts$n.jsonl:3$1" generate "$golden/models/llama" --prompts "prompts$n.jsonl"
}
p ':1: a request has one of prompt, messages, input_ids' '{"prompt": "a", "input_ids": [1]}'
p ':1: a request has one of prompt, messages, input_ids' '{"max_tokens": 2}'
p ":2: unknown key 'promt' in a request: did you mean 'prompt'" '{"promt": "a"}'
p ": not a JSON object: 1:15: expected ','" '{"prompt": "a"'
p ":31: 'max_tokens' of a request: expected a whole number from 1 to 1000000000, found 0" '{"prompt": "a", "max_tokens": 0}'
p ": a row must be an object" '[1]'
p ':1: messages must be a list' '{"messages": "hi"}'
p ":16: 'input_ids[0]' of a request: expected a whole number" '{"input_ids": ["a"]}'
f empty.jsonl < /dev/null; c 1 'empty.jsonl: there are no requests in it' generate "$golden/models/llama" --prompts empty.jsonl
f one.jsonl <<< '{"input_ids": [1]}'
c 1 'from 0 to 100, found 1000' generate "$golden/models/llama" --prompts one.jsonl --temperature 1000
c 3 'nodir/x.jsonl: cannot create' generate "$golden/models/llama" --prompts one.jsonl --out nodir/x.jsonl
mkdir place; mkfifo pipe
c 3 'place: is a folder, expected a file' generate "$golden/models/llama" --prompts one.jsonl --out place
c 3 'pipe: is a device or pipe, expected a file' generate "$golden/models/llama" --prompts one.jsonl --out pipe
c 3 'place: is a folder, expected a file' tune good.yaml backend=cpu --out place
c 3 'nodir/t.yaml: cannot create' tune good.yaml backend=cpu --out nodir/t.yaml
c 3 'pipe: is a device or pipe, expected a file' tune good.yaml backend=cpu --out pipe
c 1 'nothere.jsonl: cannot open' generate "$golden/models/llama" --prompts nothere.jsonl
mkfifo pipe.jsonl; c 1 'pipe.jsonl: requests are read twice' generate "$golden/models/llama" --prompts pipe.jsonl

# ------------------------------------------------------------ keys and values
c 1 "unknown key 'loss_function' in stage train" check good.yaml stages.base.loss_function=dpo
c 1 "'profile' is a key of the file's top level" check good.yaml stages.base.profile=true
c 1 "'threads' is a key of backend (cpu)" check good.yaml stages.base.threads=2
c 1 "'learning_rate' is a key of optimizer (adamw, sgd)" check good.yaml stages.base.learning_rate=1
c 1 "'max_steps' is a key of stage (train)" check good.yaml max_steps=3
c 1 "'max_length' is a key of every dataset" check good.yaml stages.base.max_length=3
c 1 "'warmup_steps' is a key of schedule" check good.yaml stages.base.optimizer.warmup_steps=3
c 1 "'eval_steps' of stage train has no effect without 'eval_dataset' or 'eval_split'" check good.yaml stages.base.eval_steps=5
c 1 "'eval_split' of stage train has no effect beside 'eval_dataset'" check good.yaml stages.base.eval_split=0.5 stages.base.eval_dataset=rows.jsonl
c 1 "'label_smoothing' of loss dpo has no effect without 'loss_type=sigmoid' or 'loss_type=robust'" check good.yaml 'stages.base.loss={type: dpo, loss_type: ipo, label_smoothing: 0.1}'
c 1 "'warmup_ratio' of schedule has no effect beside 'warmup_steps'" check good.yaml 'stages.base.schedule={type: linear, warmup_steps: 5, warmup_ratio: 0.1}'
c 1 "'nesterov' of optimizer sgd has no effect without 'momentum'" check good.yaml 'stages.base.optimizer={type: sgd, nesterov: true}'
c 1 "'epochs' of stage train: expected a number from 1e-06 to 1000000, found 0" check good.yaml stages.base.epochs=0
c 1 "use 'epochs'" check good.yaml stages.base.num_train_epochs=3
c 1 "use 'learning_rate'" check good.yaml stages.base.optimizer.lr=1
c 1 "use 'r'" check good.yaml 'stages.base.tuner={type: lora, rank: 8}'
c 1 'a whole number from 1 to 1000000, found 0' check good.yaml stages.base.batch_size=0
c 1 "found the string 'many'" check good.yaml stages.base.batch_size=many
c 1 'found 1.5' check good.yaml stages.base.max_steps=1.5
c 1 "did you mean 'adamw'" check good.yaml stages.base.optimizer.type=adamv
c 1 "did you mean 'dpo'" check good.yaml stages.base.loss=dpoo
c 1 "no backend named 'tpu'" check good.yaml backend=tpu
c 1 "did you mean 'export'" check good.yaml stages.out.stage=exprot
c 1 "did you mean the stage 'base'" check good.yaml stages.out.model=bsae
c 1 'neither an earlier stage nor a file' check good.yaml stages.out.model=no/such/model
c 1 "two stages are called 'base'" check good.yaml stages.out.name=base
c 1 "cannot be a stage's name" check good.yaml stages.out.name=../up
c 1 "no item 'nobody'" check good.yaml stages.nobody.model=x
c 1 'none.jsonl: no such file or folder' check good.yaml stages.base.dataset.path=none.jsonl
c 1 'expected one of right, left, drop, split, error' check good.yaml stages.base.dataset.overlong=middle
c 1 'expected one of constant, linear, cosine' check good.yaml stages.base.schedule=cosin
c 1 'found NaN' check good.yaml 'stages.base.loss={type: dpo, beta: .nan}'
c 1 'from 1e-06 to 1000, found -1' check good.yaml 'stages.base.loss={type: dpo, beta: -1}'
c 1 'expected a path, found nothing' check good.yaml stages.out.path=null
c 1 'expected one of float32' check good.yaml stages.out.dtype=int3
c 1 "no tracker named 'wandb'" check good.yaml 'trackers=[wandb]'
c 1 'expected a size (2GiB' check good.yaml 'backend={type: cpu, memory: lots}'
c 1 'from 1 to 9e+18, found 0' check good.yaml 'backend={type: cpu, memory: 0}'
c 1 "place: is a folder, expected a file" check good.yaml 'backend={type: cpu, tuning: place}'
# A pipe that nobody writes to is not waited for.
c 1 "pipe:1:1: a tuning file needs 'version'" check good.yaml 'backend={type: cpu, tuning: pipe}'
c 1 "pipe:1:1: expected a mapping" check pipe
c 3 'pipe: not a regular file' run good.yaml stages.base.dataset.path=pipe
c 5 'pipe: not a model file or folder' score pipe --ids 1
c 1 "use 'backend'" check good.yaml memory=2GiB
c 1 'from 0 to 9e+18, found -1' check good.yaml seed=-1
c 1 'a list of at least one stage' check good.yaml 'stages=[]'
c 1 'a list of at least one stage' check good.yaml stages=7
c 1 'while parsing a flow node' check good.yaml 'stages.base={'

# ------------------------------------------------------------ pipeline files
c 1 'No such file' check none.yaml
mkdir folder.yaml; c 1 'is a folder, expected a file' check folder.yaml
f e.yaml < /dev/null; c 1 'expected a mapping (key: value), found nothing' check e.yaml
f e.yaml <<< 'just a text'; c 1 "found the string 'just a text'" check e.yaml
printf 'stages:\n  - stage: train\n\t  model: x\n' | f tab.yaml; c 1 'tab.yaml:3:1: found a tab' check tab.yaml
printf 'seed: 1\nseed: 2\nstages: []\n' | f twice.yaml; c 1 "twice.yaml:2:1: the key 'seed' is there twice" check twice.yaml
printf 'stages: [\n' | f open.yaml; c 1 'open.yaml:2:1' check open.yaml
{ printf 'a: '; head -c 3000 /dev/zero | tr '\0' '['; } | f deep.yaml; c 1 'nested deeper than 100 levels' check deep.yaml
{ echo 'a: &a [x, x, x, x, x, x, x, x, x, x]'; p=a; for k in b d e g h i; do printf '%s: &%s [*%s, *%s, *%s, *%s, *%s, *%s, *%s, *%s]\n' $k $k $p $p $p $p $p $p $p $p; p=$k; done; } | f bomb.yaml
c 1 'makes the aliases expand to more than' check bomb.yaml
f a.yaml <<< 'include: b.yaml'; f b.yaml <<< 'include: a.yaml'; c 1 'includes itself' check a.yaml
f a.yaml <<< 'include: nowhere.yaml'; c 1 "'nowhere.yaml' cannot be opened" check a.yaml
f env.yaml <<< 'seed: ${NO_SUCH_NAME}'; c 1 'no such environment variable' check env.yaml
f env.yaml <<< 'run: ${seed'; c 1 "'\${' without its '}'" check env.yaml
f env.yaml <<< 'run: ${run}'; c 1 'refers to itself' check env.yaml
printf 'run: "\xff\xfe\xfa"\n' | f latin.yaml; c 1 'invalid leading UTF-8 octet' check latin.yaml
f tag.yaml <<< 'stages: !!python/object:os.system [x]'; c 1 'means nothing here' check tag.yaml
printf -- '---\na: 1\n---\nb: 2\n' | f two.yaml; c 1 'a second document' check two.yaml

# ------------------------------------------------------------ rows
# d CODE TEXT FILE: the sound pipeline over these rows (whatever their type).
d() { c "$1" "$2" run good.yaml "stages.base.dataset={path: $3}"; }
printf '{"input_ids": [1, 2, 3]}\n{"input_ids": [1,\n' | f cut.jsonl; d 1 'cut.jsonl:2: not a JSON object' cut.jsonl
f none.jsonl < /dev/null; d 1 'there are no rows in it' none.jsonl
f list.jsonl <<< '[1, 2]'; d 1 'list.jsonl:1: a row must be an object' list.jsonl
f vocab.jsonl <<< '{"input_ids": [1, 2, 999999]}'; d 1 "outside the model's vocabulary of 8" vocab.jsonl
f minus.jsonl <<< '{"input_ids": [1, -2]}'; d 1 'input_ids[1] is not a token id' minus.jsonl
f inf.jsonl <<< '{"input_ids": [1e999]}'; d 1 'inf.jsonl:1' inf.jsonl
f masked.jsonl <<< '{"input_ids": [1, 2, 3], "labels": [-100, -100, -100]}'; d 1 'no token left to train on' masked.jsonl
f unknown.jsonl <<< '{"question": "a", "reply": "b"}'; d 1 'no dataset type recognises rows with the columns question, reply' unknown.jsonl
f text.jsonl <<< '{"prompt": "a", "completion": "b"}'; d 1 'the model has no tokenizer' text.jsonl
f data.parquet <<< 'PAR1'; d 5 'rows cannot be read from a file of this kind' data.parquet
d 1 "leaves the archive ('..')" "$corpus/source/up.zip"
printf '\x1f\x8b\x08\x00garbage' | f broken.jsonl.gz; d 1 'truncated gzip input' broken.jsonl.gz
head -c 100000000 /dev/zero | tr '\0' ' ' | bzip2 -1 | f bomb.jsonl.bz2; d 1 'unpacks to more than 300 times' bomb.jsonl.bz2
c 1 "the rows have no column 'tokens'" run good.yaml 'stages.base.dataset={path: rows.jsonl, columns: {input_ids: tokens}}'
c 1 'not a preference pair' run good.yaml stages.base.loss=dpo

# ------------------------------------------------------------ models from scratch, limits, outputs
c 1 'hidden_size: is missing' run good.yaml 'stages.base.model.config={vocab_size: 8}'
c 1 'is odd' run good.yaml stages.base.model.config.hidden_size=7
c 1 'expected a number from 1' run good.yaml stages.base.model.config.hidden_size=big
c 1 'expected a number from 1' run good.yaml stages.base.model.config.num_attention_heads=0
c 1 "no arch named 'mamba'" run good.yaml stages.base.model.arch=mamba
c 1 "'mamba' is no decoder" run good.yaml stages.base.model.config.model_type=mamba
c 1 "'w_q' matches no linear layer" run good.yaml 'stages.base.tuner={type: lora, target_modules: [w_q]}'
c 5 'is the vocabulary head' run good.yaml 'stages.base.tuner={type: lora, target_modules: [lm_head]}'
c 4 'this training needs at least' run good.yaml 'backend={type: ref, memory: 1KiB}'
c 4 'this training needs at least' plan good.yaml 'backend={type: ref, memory: 1KiB}'
c 7 'the gradient norm' run good.yaml stages.base.max_steps=5 stages.base.optimizer.learning_rate=10 'stages.base.optimizer.eps=0' stages.base.max_grad_norm=0 stages.base.model.config.initializer_range=1000
# What kind of error it was comes through to the exit code, from the model and from a loss's reference.
mkdir notmodel
huge='{vocab_size: 16000000, hidden_size: 1048576, intermediate_size: 8, num_hidden_layers: 1, num_attention_heads: 2}'
# r CODE TEXT REFERENCE: a preference pair against this model.
r() { c "$1" "$2" run good.yaml 'stages.base.dataset={path: pairs.jsonl, type: preference}' "stages.base.loss={type: dpo, reference: $3}" "stages.base.model.tokenizer=$golden/../../configs/byte-tokenizer" stages.base.model.config.vocab_size=257; }
export ASAN_OPTIONS=${ASAN_OPTIONS:+$ASAN_OPTIONS:}allocator_may_return_null=1
c 4 'out of memory' run good.yaml "stages.base.model.config=$huge"
c 4 'out of memory' run good.yaml backend=cpu "stages.base.model.config=$huge"
r 4 'out of memory' "{arch: decoder, config: $huge}"
r 5 'not a model file or folder' notmodel
c 5 'not a model file or folder' score notmodel --ids 1,2
c 5 'rows cannot be read from a file of this kind' preview good.yaml stages.base.dataset.path=data.parquet
mkdir full && f full/file <<< x; c 1 'was not written by apus' run good.yaml stages.out.path=full

# ------------------------------------------------------------ model files
c 5 'not a model file or folder' inspect notmodel
f text.gguf <<< 'hello'; c 1 'does not begin with GGUF' inspect text.gguf
head -c 100 "$corpus/gguf/llama" | f cut.gguf; c 1 'do not fit into 100 bytes' inspect cut.gguf
head -c 700 "$corpus/gguf/llama" | f cut.gguf; c 1 'cut.gguf: ' inspect cut.gguf
{ printf GGUF; u32 3; u64 99999999999; u64 0; } | f many.gguf; c 1 'do not fit into 24 bytes' inspect many.gguf
{ printf GGUF; u32 9; u64 0; u64 0; } | f version.gguf; c 5 'GGUF version 9' inspect version.gguf
{ printf GGUF; u32 3; u64 0; u64 1; u64 9223372036854775807; head -c 64 /dev/zero; } | f length.gguf; c 1 'length.gguf: ' inspect length.gguf
st '{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}' 8 | f a.safetensors; c 1 'only 8 are there' inspect a.safetensors
st '{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}' 12 | f a.safetensors
c 1 "'a' and 'b' overlap" inspect a.safetensors
st '{"a": {"dtype": "F9", "shape": [2], "data_offsets": [0, 8]}}' 8 | f a.safetensors; c 5 "element type 'F9'" inspect a.safetensors
st '{"a": {"dtype": "F32", "shape": [4611686018427387904, 4], "data_offsets": [0, 8]}}' 8 | f a.safetensors; c 1 'its shape overflows' inspect a.safetensors
st '{"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}' 8 | f a.safetensors; c 1 'not a size' inspect a.safetensors
{ u64 9223372036854775807; printf '{}'; } | f a.safetensors; c 1 '9223372036854775807 bytes long, but 2 follow' inspect a.safetensors
{ u64 2; printf '{'; } | f a.safetensors; c 1 '2 bytes long, but 1 follow' inspect a.safetensors
f a.safetensors < /dev/null; c 1 '0 bytes are too few' inspect a.safetensors
# A sound model, spoiled in copies.
m=$golden/models/llama
spoil() { rm -rf spoiled && cp -r "$m" spoiled && chmod -R u+w spoiled; }
s() { c 1 "$1" score spoiled --ids 1,2,3; }
spoil; rm spoiled/config.json; s 'no weights here with a configuration'
spoil; f spoiled/config.json <<< '{'; s 'spoiled/config.json:2:1'
spoil; sed -i 's/"hidden_size": *[0-9]*/"hidden_size": 1024/' spoiled/config.json; s 'of a wrong shape'
spoil; sed -i 's/"num_hidden_layers": *[0-9]*/"num_hidden_layers": 9/' spoiled/config.json; s '63 missing'
spoil; sed -i 's/"num_hidden_layers": *[0-9]*/"num_hidden_layers": 1/' spoiled/config.json; s '9 unused'
spoil; truncate -s -1000 spoiled/model.safetensors; s 'only 79512 are there'
spoil; printf '{{ a' | f spoiled/chat_template.jinja; f spoiled/m.json <<< '[{"role": "user", "content": "a"}]'; c 1 'chat_template:1:3' render spoiled --messages spoiled/m.json
c 1 'outside the vocabulary of 96' score "$m" --ids 1,2,99999
c 1 'there is no tokenizer' score "$m" --text hello
c 1 'there is no tokenizer' tokenize "$m"
c 1 'there is no chat template' render "$m" --messages rows.jsonl
c 1 "no format named 'onnx'" export "$m" --format onnx --out x.onnx
c 1 'was not written by apus' export "$m" --format safetensors --out full
c 1 "no backend named 'tpu'" score "$m" --ids 1,2,3 --backend tpu
c 1 "did you mean 'int8'" score "$m" --ids 1,2,3 --activations int9
c 1 "found the string 'two'" score "$m" --ids 1,2,3 --threads two
c 1 "expected one of float32" score "$m" --ids 1,2,3 --dtype float15
c 5 'not a model file or folder' score "$m" --ids 1,2,3 --adapter full

# ------------------------------------------------------------ plugins
if [ -n "$cases" ]; then
    # p TEXT CASE: one of the built plugins, alone in a folder.
    p() { rm -rf plugins && mkdir plugins && cp "$cases/case_$2.so" plugins/ && chmod 644 plugins/*; c "${3:-1}" "$1" --plugin-dir "$folder/plugins" plugins; }
    p 'layout' layout
    p 'minor' minor 5
    p 'undefined' undefined
    p 'apus_plugin_v1' entry
    rm -rf plugins && mkdir plugins && cp "$cases/case_good.so" plugins/ && chmod 666 plugins/*; c 1 'world-writable' --plugin-dir "$folder/plugins" plugins
    chmod 644 plugins/*; chmod 777 plugins; c 1 'world-writable' --plugin-dir "$folder/plugins" plugins
    rm -rf plugins && mkdir plugins && head -c 2000 "$cases/case_good.so" | f plugins/cut.so; c 1 'cut.so' --plugin-dir "$folder/plugins" plugins
fi
c 1 'absolute' --plugin-dir plugins plugins

# ------------------------------------------------------------ after all that, the sound pipeline still runs
if ! timeout 120 "$apus" run good.yaml > /dev/null 2> err.txt || [ ! -f out/model.safetensors ]; then
    bad=$((bad + 1))
    echo "the sound pipeline does not run: $(cat err.txt)"
fi
echo "$count cases, $bad of them wrong"
[ "$bad" = 0 ]
