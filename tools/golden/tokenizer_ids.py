"""Writes tests/golden/tokenizers/*.json.gz: ids and texts by Hugging Face's tokenizers, for tests/plugins/tokenizer.

    python tools/golden/tokenizer_ids.py ../shared/data tests/golden/tokenizers

texts.json.gz     the texts (and byte strings, in hex) that every tokenizer encodes
NAME.json.gz      one tokenizer whose vocabulary is in the data folder: where, its pipeline, ids, decoded texts
synthetic.json.gz tokenizers small enough to be here whole: every stage, every option

`planes` are hashes (FNV-1a over the ids' little-endian bytes) of the ids of all code points, 4096 by 4096: see plane().
"""

import copy
import gzip
import json
import os
import random
import string
import sys

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

DATA, OUT = sys.argv[1], sys.argv[2]
RANDOM = random.Random(20240607)
SPACES = [chr(c) for c in (9, 10, 11, 12, 13, 32, 0x85, 0xA0, 0x1680, 0x2000, 0x2003, 0x200A, 0x2028, 0x2029, 0x202F,
                           0x205F, 0x3000, 0x180E, 0x200B, 0xFEFF)]
CONTRACTIONS = ["'s", "'T", "'RE", "I'm", "we'll", "'\u017f", "\u017f", "\u212a", "he'Ll", "don't", "'ve", "y'all"]
CODE = ["def f(x):\n\treturn x  # ok\n", "for(int i=0;i<n;++i){\r\n}", "<html>&amp;</html>", '{"a": [1, 2.50e-3]}\n\n']
SCRIPTS = ["שלום עולם", "مرحبا بالعالم", "नमस्ते", "e\u0301\u0327", "각", "\u1100\u1161\u11a8", "Ǻ\u0323", "ﬁ①Ⅷ½", "中文字符测试", "日本語テキスト",
           "ไทย", "한국어", "Ελληνικά ΣΑΣ", "İstanbul", "👨‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪🇫🇷", "1️⃣", "\U0001F44D\U0001F3FD"]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "</s>", "<unk>", "<think>", "</tool_call>", "<|im", "<tool>", "<mask>"]


def characters(n):
    out = []
    while len(out) < n:
        kind = RANDOM.random()
        if kind < 0.4:
            c = RANDOM.randrange(0x110000)
        elif kind < 0.6:
            c = RANDOM.randrange(0x10000)
        elif kind < 0.8:
            c = RANDOM.randrange(0x3000)
        else:
            c = RANDOM.choice([0x300 + RANDOM.randrange(0x70), 0x1100 + RANDOM.randrange(0x100), 0xAC00 + RANDOM.randrange(11172),
                               0xA00 + RANDOM.randrange(0x800), 0x1F300 + RANDOM.randrange(0x700), 0x20D0 + RANDOM.randrange(48)])
        if not 0xD800 <= c <= 0xDFFF:
            out.append(chr(c))
    return "".join(out)


def text(words):
    out = []
    for _ in range(RANDOM.randrange(1, 14)):
        kind = RANDOM.random()
        if kind < 0.3:
            out.append(" ".join(RANDOM.sample(words, RANDOM.randrange(1, 7))))
        elif kind < 0.45:
            out.append(characters(RANDOM.randrange(1, 12)))
        elif kind < 0.55:
            out.append("".join(RANDOM.choice(SPACES) for _ in range(RANDOM.randrange(1, 8))))
        elif kind < 0.63:
            out.append(RANDOM.choice(CONTRACTIONS))
        elif kind < 0.71:
            out.append(RANDOM.choice(["", "-", ".", ","]) + str(RANDOM.randrange(10 ** RANDOM.randrange(1, 12))) + RANDOM.choice(["", "½", "٣", "Ⅷ", "²"]))
        elif kind < 0.8:
            out.append(RANDOM.choice(SPECIAL))
        elif kind < 0.86:
            out.append(RANDOM.choice(["a", "▁", " ", "!", "=", "\n", "é", "字", "0"]) * RANDOM.randrange(1, 60))
        elif kind < 0.93:
            out.append(RANDOM.choice(SCRIPTS))
        else:
            out.append(RANDOM.choice(CODE))
    return RANDOM.choice(["", " "]).join(out)


def plane(first):
    """4096 code points from `first` on, some with a space or a letter after them."""
    return "".join(chr(c) + (" " if c % 3 == 0 else "") + ("a" if c % 7 == 0 else "")
                   for c in range(first, first + 4096) if not 0xD800 <= c <= 0xDFFF)


def fnv(numbers):
    h = 0xCBF29CE484222325
    for n in numbers:
        for b in (n & 0xFFFFFFFF).to_bytes(4, "little"):
            h = (h ^ b) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return f"{h:016x}"


def begins(text, encoding):
    """Byte offsets of the characters that tokens begin in."""
    at = [0]
    for c in text:
        at.append(at[-1] + len(c.encode()))
    return [at[o[0]] for o in encoding.offsets]


def measure(source, texts, byte_texts, offsets=True, planes=True, decodes=60):
    t = Tokenizer.from_str(json.dumps(source))
    out = {"encode": [], "ordinary": [], "special": [], "bytes": [], "decode": []}
    for s in texts:
        t.encode_special_tokens = False
        e = t.encode(s, add_special_tokens=False)
        out["encode"].append(e.ids)
        special = t.encode(s, add_special_tokens=True).ids
        out["special"].append(None if special == e.ids else fnv(special))
        if offsets:
            out.setdefault("begin", []).append(fnv(begins(s, e)))
        t.encode_special_tokens = True
        ordinary = t.encode(s, add_special_tokens=False).ids
        out["ordinary"].append(None if ordinary == e.ids else ordinary)
    t.encode_special_tokens = False
    for b in byte_texts:
        out["bytes"].append(fnv(t.encode(b.decode(errors="replace"), add_special_tokens=False).ids))
    size = t.get_vocab_size()
    for i in range(decodes):
        ids = [RANDOM.randrange(size if RANDOM.random() < 0.7 else min(size, 300)) for _ in range(RANDOM.randrange(1, 20))]
        skip = i % 2
        out["decode"].append([ids, skip, t.decode(ids, skip_special_tokens=bool(skip))])
    if planes:
        out["planes"] = [fnv(t.encode(plane(first), add_special_tokens=False).ids) for first in range(0, 0x110000, 4096)]
    return out


def write(name, value):
    path = os.path.join(OUT, name + ".json.gz")
    with open(path, "wb") as f, gzip.GzipFile(fileobj=f, mode="wb", mtime=0, filename="") as z:
        z.write(json.dumps(value, ensure_ascii=True, separators=(",", ":")).encode())
    print(path, os.path.getsize(path))


def without_vocabulary(source):
    pipeline = {k: source[k] for k in ("normalizer", "pre_tokenizer", "post_processor", "decoder", "added_tokens")}
    pipeline["model"] = {k: v for k, v in source["model"].items() if k not in ("vocab", "merges")}
    return pipeline


def added(content, id, **options):
    token = dict(id=id, content=content, single_word=False, lstrip=False, rstrip=False, normalized=False, special=False)
    token.update(options)
    return token


def from_gguf(folder, file):
    from transformers import AutoTokenizer
    return json.loads(AutoTokenizer.from_pretrained(os.path.join(DATA, folder), gguf_file=file).backend_tokenizer.to_str())


def real(texts, byte_texts):
    small = texts[:70]
    with open(f"{DATA}/tokenizers/qwen3/tokenizer.json") as f:
        qwen3 = json.load(f)
    write("qwen3", {"vocabulary": "tokenizers/qwen3/tokenizer.json", **measure(qwen3, small, byte_texts, offsets=False)})

    with open(f"{DATA}/tokenizers/gpt2/encoder.json") as f:
        vocab = json.load(f)
    with open(f"{DATA}/tokenizers/gpt2/vocab.bpe") as f:
        merges = [tuple(line.split(" ")) for line in f.read().split("\n")[1:-1]]
    t = Tokenizer(models.BPE(vocab, merges))
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.decoder = decoders.ByteLevel()
    t.post_processor = processors.ByteLevel(trim_offsets=False)
    t.add_special_tokens(["<|endoftext|>"])
    gpt2 = json.loads(t.to_str())
    write("gpt2", {"vocabulary": "tokenizers/gpt2", "pipeline": without_vocabulary(gpt2), **measure(gpt2, small, byte_texts)})

    # No offsets: some bytes have no token here, are left out, and Hugging Face's offsets slip after them.
    # As transformers reads the GGUF, and as SmolLM2's own tokenizer.json has it: single digits first.
    file = "models/smollm2-135m-instruct"
    name = next(f for f in os.listdir(f"{DATA}/{file}") if f.endswith(".gguf"))
    smollm2 = from_gguf(file, name)
    write("smollm2-transformers", {"vocabulary": f"{file}/{name}", "pipeline": without_vocabulary(smollm2), **measure(smollm2, small, byte_texts, offsets=False)})
    smollm2["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, smollm2["pre_tokenizer"]]}
    write("smollm2", {"vocabulary": f"{file}/{name}", **measure(smollm2, small, byte_texts, offsets=False)})

    llama = from_gguf("tokenizers/vectors", "ggml-vocab-llama-spm.gguf")
    # Llama 2's own tokenizer.json: a ▁ before every text, also one that opens with a space (transformers' reading of the
    # GGUF leaves that out, and misses llama.cpp's vectors).
    llama["pre_tokenizer"] = None
    llama["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
                                                               {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]}
    write("llama-spm", {"vocabulary": "tokenizers/vectors/ggml-vocab-llama-spm.gguf", **measure(llama, small, byte_texts)})


def synthetic(texts, byte_texts, corpus):
    cases = []

    def case(name, source, n=24, **options):
        options.setdefault("planes", False)
        cases.append({"name": name, "tokenizer": source, **measure(source, texts[:n], byte_texts[:8], decodes=12, **options)})

    t = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    t.pre_tokenizer = pre_tokenizers.Metaspace()
    t.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=640, special_tokens=["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)], show_progress=False))
    spm = json.loads(t.to_str())
    spm["pre_tokenizer"] = None
    spm["added_tokens"] = spm["added_tokens"][:3]
    spm["post_processor"] = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}],
                             "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                             "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}, "</s>": {"id": "</s>", "ids": [2], "tokens": ["</s>"]}}}
    spm["decoder"] = {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}
    case("llama-2", spm, 40, planes=True)
    for scheme in ("always", "first", "never"):
        for split in (True, False):
            v = copy.deepcopy(spm)
            v["normalizer"] = None
            v["pre_tokenizer"] = v["decoder"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split}
            v["model"]["byte_fallback"] = split
            v["model"]["fuse_unk"] = scheme == "first"
            case(f"metaspace {scheme} {split}", v, 8)
    v = copy.deepcopy(spm)
    v["model"].update(byte_fallback=False, unk_token=None)
    case("no unknown", v, 8, offsets=False)  # as above: left-out characters

    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=560, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False))
    base = json.loads(t.to_str())
    n = len(base["model"]["vocab"])
    base["added_tokens"] = [added("<|endoftext|>", n, special=True), added("<tool>", n + 1), added("<mask>", n + 2, lstrip=True, special=True),
                            added("<think>", n + 3, rstrip=True), added("<|im_start|>", n + 4, special=True), added("<|im", n + 5),
                            added("king", n + 6, single_word=True, normalized=True)]

    def split(pattern, behavior="Isolated", invert=False, kind="Regex"):
        return {"type": "Split", "pattern": {kind: pattern}, "behavior": behavior, "invert": invert}

    def pipe(*steps):
        return {"type": "Sequence", "pretokenizers": [*steps, {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}]}

    level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    llama3 = copy.deepcopy(base)
    llama3["pre_tokenizer"] = pipe(split(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"))
    llama3["model"]["ignore_merges"] = True
    llama3["model"]["vocab"].update({"ĠCaesar": n, "Hello": n + 1, "123": n + 2, "ĠĠĠĠ": n + 3})
    for token in llama3["added_tokens"]:
        token["id"] += 4
    llama3["model"]["merges"] = [" ".join(m) for m in llama3["model"]["merges"]]
    case("llama-3", llama3, 40, planes=True)
    o200k = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
             r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    deepseek = (r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    kimi = r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    variants = {
        "prefix space": level,
        "digits": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, level]},
        "falcon": {"type": "Sequence", "pretokenizers": [{"type": "Punctuation", "behavior": "Contiguous"}, level, {"type": "Digits", "individual_digits": False}, split("[0-9][0-9][0-9]")]},
        "o200k": pipe(split(o200k)), "deepseek": pipe(split(r"\p{N}{1,3}"), split("[一-龥぀-ゟ゠-ヿ]+"), split(deepseek)), "kimi": pipe(split(kimi)),
        "words": pipe({"type": "Whitespace"}), "bert": pipe({"type": "BertPreTokenizer"}), "spaces": pipe({"type": "WhitespaceSplit"}),
        "classes": pipe(split(r"\w+|\W+|\d", "MergedWithNext")), "boundaries": pipe(split(r"\b")), "hex": pipe(split(r"\h+|[[:punct:]]|[[:alpha:]]{2}|[[:space:]]", "Contiguous")),
        "lines": pipe(split(r"^.|.$", "MergedWithPrevious")), "ruby": pipe(split(r"(?m)a.*?b|(?i)THE|AND", "MergedWithNext", True)), "empty": pipe(split(r"x*")),
        "sets": pipe(split(r"[a-y&&[^aeiou]]+|[^\S\n]{2}+|\p{^L}", "Removed")), "marks": pipe(split(r"[^\P{M}a]|\P{C}", "Contiguous")),
        "strings": pipe(split(" ", "MergedWithPrevious", False, "String"), split("e", "Removed", True, "String")),
        "fixed": pipe({"type": "CharDelimiterSplit", "delimiter": "e"}, {"type": "FixedLength", "length": 3}), "punctuation": pipe({"type": "Punctuation"})}
    for behavior in ("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"):
        for invert in (False, True):
            variants[f"{behavior} {invert}"] = pipe(split(r"\s|[aeiou]+", behavior, invert))
    everywhere = ("digits", "o200k", "deepseek", "kimi", "words", "bert", "classes", "hex", "marks")
    for name, pre in variants.items():
        v = copy.deepcopy(base)
        v["pre_tokenizer"] = pre
        case(name, v, 6, planes=name in everywhere)
    sequence = lambda *steps: {"type": "Sequence", "normalizers": list(steps)}
    both = {"type": "Strip", "strip_left": True, "strip_right": True}
    for name, normal in {"NFC": {"type": "NFC"}, "NFD": {"type": "NFD"}, "NFKC": {"type": "NFKC"}, "NFKD": {"type": "NFKD"}, "lower": {"type": "Lowercase"}, "nmt": {"type": "Nmt"},
                         "accents": sequence({"type": "NFD"}, {"type": "StripAccents"}, {"type": "Lowercase"}), "strip": sequence({"type": "NFKC"}, both),
                         "replace": sequence({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"}, {"type": "Replace", "pattern": {"String": "e"}, "content": "EE"})}.items():
        v = copy.deepcopy(base)
        v["normalizer"] = normal
        case("normalizer " + name, v, 12, planes=name not in ("strip", "replace"), offsets=name in ("lower", "nmt"))
    v = copy.deepcopy(base)
    v["normalizer"], v["pre_tokenizer"] = {"type": "ByteLevel"}, split(r"\w+|\W+")
    case("byte-level normalizer", v, 8)

    words = list(dict.fromkeys(w for w in " ".join(corpus[:60]).split(" ") if w and not w.isdigit()))[:200]
    word = {"version": "1.0", "added_tokens": [added("<eos>", 0, special=True), added("<unk>", 1, special=True)], "normalizer": None,
            "pre_tokenizer": split(r"\d| |[^\d ]+"), "post_processor": None, "decoder": {"type": "Fuse"},
            "model": {"type": "WordLevel", "unk_token": "<unk>", "vocab": {w: i for i, w in enumerate(["<eos>", "<unk>", " ", *string.digits, *words])}}}
    case("words", word, 16)
    v = copy.deepcopy(word)
    v["decoder"] = None
    case("words joined", v, 4)
    v["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    case("wordpiece decoder", v, 4)
    vocab = {}
    for c in string.ascii_lowercase + " ":
        for form in (c, "##" + c, c + "</w>", "##" + c + "</w>"):
            vocab[form] = len(vocab)
    merges = [["t", "##h"], ["th", "##e</w>"], ["##a", "##n"], ["##e", "##r"], ["##er", "##s</w>"], ["a", "##n"], ["an", "##d</w>"]]
    for a, b in merges:
        vocab[a + b[2:]] = len(vocab)
    vocab["[UNK]"] = len(vocab)
    for unk, fuse in (("[UNK]", True), ("[UNK]", False), (None, False)):
        case(f"prefix and suffix {unk} {fuse}", {"version": "1.0", "added_tokens": [], "normalizer": {"type": "Lowercase"}, "pre_tokenizer": {"type": "WhitespaceSplit"},
             "post_processor": {"type": "RobertaProcessing", "sep": ["b", 1], "cls": ["a", 2], "trim_offsets": False, "add_prefix_space": False}, "decoder": {"type": "BPEDecoder", "suffix": "</w>"},
             "model": {"type": "BPE", "unk_token": unk, "fuse_unk": fuse, "continuing_subword_prefix": "##", "end_of_word_suffix": "</w>", "vocab": vocab, "merges": merges}}, 8, offsets=unk is not None)
    write("synthetic", cases)


def main():
    os.makedirs(OUT, exist_ok=True)
    with open(f"{DATA}/text/{next(f for f in sorted(os.listdir(DATA + '/text')) if 'shakespeare' in f)}") as f:
        shakespeare = f.read()[:200000]
    words = shakespeare.split(" ")
    texts = ["", " ", "\n", "Hello world", " Hello  world ", "I've been 'told he's there, 'RE you sure? we'Ve a'lL", *SCRIPTS, *CODE]
    texts += [text(words) for _ in range(90)]
    RANDOM.shuffle(texts)
    byte_texts = [bytes(RANDOM.choice([RANDOM.randrange(256), RANDOM.randrange(0xC0, 0x100), RANDOM.randrange(0x80, 0xC0), RANDOM.randrange(32, 127)])
                        for _ in range(RANDOM.randrange(60))) for _ in range(50)]
    write("texts", {"texts": texts, "bytes": [b.hex() for b in byte_texts]})
    real(texts, byte_texts)
    synthetic(texts, byte_texts, shakespeare.split("\n"))


main()
