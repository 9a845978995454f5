#!/usr/bin/env python3
"""Writes goldens.json, tiktoken/ and sentencepiece/: what the Python tokenizers, transformers and tiktoken packages
say about the texts, templates and tokens here. Run it from the repository's root."""

import base64
import collections
import json
import random
import warnings

import tiktoken
import tokenizers
from transformers.utils.chat_template_utils import _compile_jinja_template

warnings.simplefilter("ignore")
HERE = "text/testdata/"

TEXTS = [
    "",
    " ",
    "Hello world",
    "Hello world 12345 日本語テスト! foo.bar  \n\n x  y",
    "don't 3.14",
    "x \n y",
    "  12",
    "_foo #bar 'll",
    "a\u0301 e\u0301 ñ Ω ß İ ſ",
    "😀😀 👨‍👩‍👧‍👦 🇩🇪 \U0001f3f4",
    "tab\there\r\nand\rthere\x0b\x0c\x1c\x85\u00a0\u2003\u3000end   ",
    "<think>\nWhat is 17 + 25?\n</think>\n\nIt is 42.<｜end▁of▁sentence｜>",
    "<｜User｜>hi<｜Assistant｜><think>\n",
    "< think > <|User|> </think <｜tool▁sep｜",
    "1234567 1,234,567.89 ٣٤٥ Ⅷ ½",
    "def f(x):\n    return x**2  # square\n\n\n\tif True:\n\t\tpass",
    "中文，测试。한국어 русский ไทย हिन्दी עברית العربية",
    "\x00\x01\x7f\ufffd\ufeff\u200b\u200d",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
]
ALPHABET = list(" \n\t.,'-_<>|/!09aZbeéßñ日本語中ァ가😀\u0301\u2028｜▁") + ["<think>", "</think>", "the ", "ing"]


def random_texts(rng, count):
    return ["".join(rng.choices(ALPHABET, k=rng.randrange(1, 40))) for _ in range(count)]


def tokenizer_goldens(rng):
    tokenizer = tokenizers.Tokenizer.from_file("models/tiny-r1/tokenizer.json")
    encoded = []
    for text in TEXTS + random_texts(rng, 150):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        framed = tokenizer.encode(text, add_special_tokens=True).ids
        encoded.append({"text": text, "ids": ids, "framed": framed})
    decoded = []
    for _ in range(100):
        ids = [rng.randrange(tokenizer.get_vocab_size()) for _ in range(rng.randrange(1, 12))]
        decoded.append({
            "ids": ids,
            "text": tokenizer.decode(ids, skip_special_tokens=False),
            "text_skip_special": tokenizer.decode(ids, skip_special_tokens=True),
        })
    return {"encoded": encoded, "decoded": decoded}


# The pattern of Kimi's and Moonlight's tokenizer.
KIMI_PATTERN = "|".join([
    r"[\p{Han}]+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"\p{N}{1,3}",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*",
    r"\s*[\r\n]+",
    r"\s+(?!\S)",
    r"\s+",
])
KIMI_TEXTS = ["Hello World's 12345 中文abc、好", "FooBar don't  x\n\n y", "I'LL 'ſ HE'Ll ABCdef Ǆabc"]


def train_ranks(corpus, merge_count):
    """Byte-pair ranks: the 256 bytes, then the most frequent pairs."""
    ranks = [bytes([byte]) for byte in range(256)]
    words = [[bytes([byte]) for byte in word.encode()] for word in corpus]
    for _ in range(merge_count):
        pairs = collections.Counter(p for word in words for p in zip(word, word[1:]))
        if not pairs:
            break
        merged = b"".join(max(pairs, key=lambda pair: (pairs[pair], pair)))
        if merged not in ranks:
            ranks.append(merged)
        for word in words:
            position = 0
            while position + 1 < len(word):
                if word[position] + word[position + 1] == merged:
                    word[position:position + 2] = [merged]
                position += 1
    return ranks


def tiktoken_goldens(rng):
    texts = TEXTS + KIMI_TEXTS + random_texts(rng, 150)
    ranks = train_ranks([w for text in texts for w in text.replace(" ", " \0").split("\0")], 400)
    added = {0: "[BOS]", 1: "[EOS]", 2: "<|im_end|>", 22: "<think>", 23: "</think>"}
    specials = {added.get(n, f"<|reserved_token_{len(ranks) + n}|>"): len(ranks) + n
                for n in range(258)}
    with open(HERE + "tiktoken/tiktoken.model", "wb") as file:
        for rank, token in enumerate(ranks):
            file.write(base64.b64encode(token) + f" {rank}\n".encode())
    with open(HERE + "tiktoken/tokenizer_config.json", "w") as file:
        named = {str(len(ranks) + n): {"content": text, "special": "think" not in text}
                 for n, text in added.items()}
        json.dump({"bos_token": "[BOS]", "eos_token": "[EOS]", "added_tokens_decoder": named}, file,
                  indent=1)
    encoding = tiktoken.Encoding("kimi", pat_str=KIMI_PATTERN, special_tokens=specials,
                                 mergeable_ranks={token: r for r, token in enumerate(ranks)})
    return [{
        "text": text,
        "plain": encoding.encode(text, disallowed_special=()),
        "special": encoding.encode(text, allowed_special="all"),
    } for text in texts]


TEMPLATES = {
    "r1": """{% set ns = namespace(system='') %}
{%- for message in messages %}{% if message['role'] == 'system' %}{% set ns.system = message['content'] %}{% endif %}{% endfor -%}
{{ bos_token }}{{ ns.system }}
{%- for message in messages %}
  {%- set content = message['content'] %}
  {%- if message['role'] == 'user' %}
    {{- '<｜User｜>' + content }}
  {%- elif message['role'] == 'assistant' %}
    {%- if content is not none and '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}
    {{- '<｜Assistant｜>' }}{{ content if content is not none else '' }}
    {%- for call in message['tool_calls'] or [] %}
      {{- '\\n' if not loop.first else '<｜tool▁calls▁begin｜>' }}{{ '<｜tool▁call▁begin｜>' + call['type'] + '<｜tool▁sep｜>' + call['function']['name'] + '\\n```json\\n' + call['function']['arguments']|tojson + '\\n```<｜tool▁call▁end｜>' }}
      {%- if loop.last %}{{ '<｜tool▁calls▁end｜>' }}{% endif %}
    {%- endfor %}
    {{- eos_token }}
  {%- elif message['role'] == 'tool' %}
    {{- '<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>' + content + '<｜tool▁output▁end｜><｜tool▁outputs▁end｜>' }}
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}""",
    "v31": """{%- if thinking is not defined %}{% set thinking = false %}{% endif -%}
{{ bos_token }}{{ messages | selectattr('role', 'equalto', 'system') | map(attribute='content') | join('\\n\\n') }}
{%- if tools %}
  {{- '\\n\\n## Tools\\nYou have access to the following tools:\\n' }}
  {%- for tool in tools %}
    {{- '\\n### ' + tool.function.name + '\\nDescription: ' + tool.function.description + '\\n\\nParameters: ' + (tool.function.parameters | tojson) + '\\n' }}
  {%- endfor %}
{%- endif %}
{%- for message in messages %}
  {%- if message.role == 'user' %}
{{ '<｜User｜>' ~ message.content }}
  {%- endif %}
  {%- if message.role == 'assistant' and message.content %}
    {%- set content = message.content.split('</think>', 1)[1] if '</think>' in message.content else message.content %}
    {{- '<｜Assistant｜>' + '</think>' + content + eos_token }}
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<｜Assistant｜>' }}{{ '<think>' if thinking else '</think>' }}{% endif %}""",
    "kimi": """{%- macro header(message) -%}
{{ '<|im_' + (message.role if message.role in ['user', 'assistant'] else 'system') + '|>' }}{{ message.get('name') or message.role }}<|im_middle|>
{%- endmacro -%}
{%- macro body(content) -%}
  {% if content is string %}{{ content }}
  {%- elif content is not none %}{% for part in content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}
  {%- endif %}
{%- endmacro -%}
{%- if tools -%}<|im_system|>tool_declare<|im_middle|>{{ tools | tojson(separators=(',', ':')) }}<|im_end|>{%- endif -%}
{%- for message in messages -%}
  {%- if loop.first and messages[0]['role'] != 'system' -%}
  <|im_system|>system<|im_middle|>You are a helpful assistant<|im_end|>
  {%- endif %}
  {{- header(message) }}
  {%- if message.tool_calls -%}
    {{ body(message.content) }}<|tool_calls_section_begin|>
    {%- for call in message.tool_calls -%}
    <|tool_call_begin|>{{ call.id }}<|tool_call_argument_begin|>{% if call.function.arguments is string %}{{ call.function.arguments }}{% else %}{{ call.function.arguments | tojson }}{% endif %}<|tool_call_end|>
    {%- endfor -%}
    <|tool_calls_section_end|>
  {%- elif message.role == 'tool' -%}
    ## Return of {{ message.tool_call_id }}
{{ body(message.content) }}
  {%- else -%}
    {{ body(message.content) }}
  {%- endif -%}
  <|im_end|>
{%- endfor -%}
{%- if add_generation_prompt -%}<|im_assistant|>assistant<|im_middle|>{%- endif -%}""",
    "qwen": """{%- set ns = namespace(multi_step=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
  {%- set index = (messages|length - 1) - loop.index0 %}
  {%- if ns.multi_step and message.role == 'user' and message.content is string and not (message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
    {%- set ns.multi_step = false %}{% set ns.last = index %}
  {%- endif %}
{%- endfor %}
{%- for message in messages %}
  {%- set content = message.content if message.content is string else '' %}
  {%- if message.role == 'assistant' %}
    {%- set reasoning = '' %}
    {%- if message.reasoning_content is string %}
      {%- set reasoning = message.reasoning_content %}
    {%- elif '</think>' in content %}
      {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
      {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if loop.index0 > ns.last and (loop.last or reasoning) %}
      {{- '<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
    {%- else %}{{ content }}{% endif %}
    {%- for call in message.tool_calls or [] %}
      {%- if call.function %}{% set call = call.function %}{% endif %}
      {{- '\\n<tool_call>\\n{"name": "' ~ call.name ~ '", "arguments": ' }}
      {{- call.arguments if call.arguments is string else call.arguments | tojson }}{{ '}\\n</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
  {%- else %}
    {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{% endif %}""",
    "glm": """[gMASK]<sop>
{%- macro visible_text(content) -%}
    {%- if content is string -%}{{- content }}
    {%- elif content is iterable and content is not mapping -%}
        {%- for item in content -%}
            {%- if item is mapping and item.type == 'text' -%}{{- item.text }}{%- elif item is string -%}{{- item }}{%- endif -%}
        {%- endfor -%}
    {%- else -%}{{- content }}{%- endif -%}
{%- endmacro -%}
{%- for m in messages %}
{%- if m.role == 'user' %}<|user|>
{{ visible_text(m.content) }}
{{- '/nothink' if (enable_thinking is defined and not enable_thinking and not visible_text(m.content).endswith("/nothink")) else '' -}}
{%- elif m.role == 'assistant' %}<|assistant|>
{%- if m.tool_calls %}{% for tc in m.tool_calls %}
{{ '\\n<tool_call>' + tc.function.name }}
{% set _args = tc.function.arguments %}
{% if _args is mapping %}{% for k, v in _args.items() %}
<arg_key>{{ k }}</arg_key>
<arg_value>{{ v | tojson(ensure_ascii=False) if v is not string else v }}</arg_value>
{% endfor %}{% endif %}
</tool_call>{% endfor %}{% endif %}
{{ '\\n' + visible_text(m.content).strip() if m.content }}
{%- elif m.role == 'tool' -%}
{%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}{{- '<|observation|>' }}{% endif %}
{{- '\\n<tool_response>\\n' }}{{- m.content }}{{- '\\n</tool_response>' }}
{%- elif m.role == 'system' %}<|system|>
{{ visible_text(m.content) }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|assistant|>{{- '\\n<think></think>' if (enable_thinking is defined and not enable_thinking) else '' -}}{%- endif -%}""",
    "printing": """{{ messages[0] }} {{ none }} {{ true }} {{ 1.0 }} {{ 1e16 }} {{ 1e-05 }} {{ 0.1 + 0.2 }} {{ 7 // 2 }} {{ 7 / 2 }} {{ 2 ** 5 }} {{ -7 % 3 }}
{{ tools | tojson }} {{ tools | tojson(indent=2) }} {{ tools | tojson(sort_keys=true) }} {{ messages | tojson(ensure_ascii=true) }}
{{ {'b': 1, 'a': [none, "q'", 'q"', 1.5]} }} {{ [] | tojson(indent=2) }} {{ missing }}|{{ missing is defined }}|{{ messages[0].missing or 'x' }}
{{ none is iterable }} {{ 'a' is iterable }} {{ [] is iterable }} {{ 1 is iterable }} {{ missing is iterable }} {{ 5 | trim }}""",
    "blocks": """line
{% if true %}
  inside
    {% for n in range(1, 9, 3) %}
  {{ n }}{{ ',' if not loop.last }}
    {% endfor %}
{% endif %}
{# comment #}
\t{%- set x %} kept {{ 1 }} {% endset %}{{ x | trim }}|{{ x }}|
{% generation %}body{% endgeneration %}
{% for n in range(10) %}{% if n == 2 %}{% continue %}{% elif n == 5 %}{% break %}{% endif %}{{ n }}{% endfor %}

{% raw %}{{ raw }}{% endraw %}
""",
}
TOOLS = [{"type": "function", "function": {
    "name": "get_weather", "description": "Weather <in> a city & more",
    "parameters": {"type": "object", "required": ["city"],
                   "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}}}]
CALLS = [{"id": "functions.get_weather:0", "type": "function", "function": {
    "name": "get_weather", "arguments": {"city": "Zürich \"x\"\n", "days": 2, "f": 1.0, "n": None}}}]
CONVERSATIONS = {
    "one": [{"role": "user", "content": "Hi"}],
    "r1": [{"role": "system", "content": "S"}, {"role": "user", "content": "u1"},
           {"role": "assistant", "content": "<think>\nr\n</think>\n\na1"},
           {"role": "user", "content": "u2"}],
    "tools": [{"role": "system", "content": "Sé"}, {"role": "user", "content": "weather?"},
              {"role": "assistant", "content": "", "tool_calls": CALLS * 2},
              {"role": "tool", "content": "{\"t\": 21}", "tool_call_id": "functions.get_weather:0"},
              {"role": "assistant", "content": "</think>21 </think> degrees  "},
              {"role": "user", "content": "<tool_response>thanks</tool_response>"}],
}


def sentencepiece_goldens(rng):
    """A vocabulary in the style of Mixtral's: ▁ for space, bytes as a fall-back."""
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    tokens += list("▁ehlowrdabc.") + ["he", "ll", "hell", "hello", "▁hello", "wo", "rld", "▁▁"]
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("▁", "hello"), ("w", "o"),
              ("▁", "▁")]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(
        {token: n for n, token in enumerate(tokens)}, merges, unk_token="<unk>", fuse_unk=True,
        byte_fallback=True))
    tokenizer.normalizer = tokenizers.normalizers.Sequence([
        tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")])
    decoders = tokenizers.decoders
    tokenizer.decoder = decoders.Sequence([
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
        decoders.Strip(" ", 1, 0)])
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.save(HERE + "sentencepiece/tokenizer.json")
    texts = ["hello world", " hello", "a  b", "é日😀", "<s>hello</s> a", "he\nllo", ""]
    texts += ["".join(rng.choices(["hello", " ", "a", "é", "</s>", "."], k=6)) for _ in range(30)]
    return [{
        "text": text,
        "ids": tokenizer.encode(text, add_special_tokens=False).ids,
        "framed": tokenizer.encode(text).ids,
        "decoded": tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False),
        "decoded_skip_special": tokenizer.decode(tokenizer.encode(text).ids),
    } for text in texts]


def template_goldens():
    goldens = []
    for name, template in TEMPLATES.items():
        compiled = _compile_jinja_template(template)
        for conversation, messages in CONVERSATIONS.items():
            for kwargs in [{}, {"thinking": True, "enable_thinking": False}]:
                tools = TOOLS if conversation == "tools" else None
                variables = {"messages": messages, "tools": tools, "bos_token": "<BOS>",
                             "eos_token": "<EOS>", "add_generation_prompt": not kwargs}
                goldens.append({
                    "template": name, "conversation": conversation, "tools": tools,
                    "kwargs": kwargs, "add_generation_prompt": not kwargs,
                    "text": compiled.render(**variables, **kwargs)})
    return {"templates": TEMPLATES, "conversations": CONVERSATIONS, "cases": goldens}


def main():
    rng = random.Random(7)
    goldens = {
        "tokenizer": tokenizer_goldens(rng),
        "tiktoken": tiktoken_goldens(rng),
        "sentencepiece": sentencepiece_goldens(rng),
        "chat": template_goldens(),
    }
    with open(HERE + "goldens.json", "w") as file:
        json.dump(goldens, file, ensure_ascii=True, indent=0)


if __name__ == "__main__":
    main()
