"""Small random base models as GGUF files, one for each thing that an architecture may do differently on the way to its logits.

    python tests/models.py FOLDER [NAME...]      writes FOLDER/NAME.gguf; the same bytes every time

Their words are those of tests/golden/tiny.base.gguf: a byte-level vocabulary of 264 tokens and the ChatML template. Weights are
random, so what they say is noise; what is tested is that all ways of computing it agree.
"""
import pathlib
import sys

import gguf
import numpy as np

TINY = pathlib.Path(__file__).resolve().parent / "golden" / "tiny.base.gguf"
D, N, HEADS, FF, CONTEXT = 256, 3, 4, 512, 512
TYPES = gguf.GGMLQuantizationType


class Maker:
    """A GGUF that grows key by key and tensor by tensor."""

    def __init__(self, path, arch, seed):
        self.arch, self.rng = arch, np.random.default_rng(seed)
        self.writer = gguf.GGUFWriter(path, arch)
        tokenizer = {key: field for key, field in gguf.GGUFReader(TINY).fields.items() if key.startswith("tokenizer.")}
        self.vocab = len(tokenizer["tokenizer.ggml.tokens"].data)
        for key, field in tokenizer.items():
            kind = field.types[0]
            self.writer.add_key_value(key, field.contents(), kind, field.types[1] if kind == gguf.GGUFValueType.ARRAY else None)
        self.u32(block_count=N, context_length=CONTEXT, embedding_length=D)
        self.writer.add_name(f"random {path.stem}")

    def u32(self, **keys):
        for key, value in keys.items():
            self.writer.add_uint32(f"{self.arch}.{key.replace('__', '.')}", value)

    def f32(self, **keys):
        for key, value in keys.items():
            self.writer.add_float32(f"{self.arch}.{key.replace('__', '.')}", value)

    def tensor(self, name, *shape, at=0.0, spread=None, kind=None):
        """Normal numbers around `at`; for a matrix [rows, cols] as wide as keeps its output's size."""
        spread = spread or (shape[-1] ** -0.5 if len(shape) > 1 else 0.1)
        if kind in (TYPES.Q4_K, TYPES.Q6_K):
            self.writer.add_tensor(name, self.k_blocks(kind, shape, spread), raw_shape=None, raw_dtype=kind)
            return
        numbers = (at + spread * self.rng.standard_normal(shape)).astype(np.float32)
        if kind in (None, TYPES.F32):
            self.writer.add_tensor(name, numbers)
        elif kind == TYPES.F16:
            self.writer.add_tensor(name, numbers.astype(np.float16))
        else:
            self.writer.add_tensor(name, gguf.quants.quantize(numbers, kind), raw_dtype=kind)

    def k_blocks(self, kind, shape, spread):
        """The gguf package does not quantise to these: blocks of random bits with scales of the right size."""
        rows, blocks = shape[0], shape[1] // 256
        size = gguf.GGML_QUANT_SIZES[kind][1]
        raw = self.rng.integers(0, 256, (rows, blocks, size), dtype=np.uint8)
        if kind == TYPES.Q4_K:     # d, dmin, 12 bytes of scales (6 bits), 128 bytes of numbers (4 bits)
            halves = np.array([spread / 150, spread / 20], np.float16)
            raw[:, :, :4] = np.frombuffer(halves.tobytes(), np.uint8)
        else:                      # Q6_K: 192 bytes of numbers (6 bits), 16 of scales (8 bits), d
            raw[:, :, -2:] = np.frombuffer(np.float16(spread / 1200).tobytes(), np.uint8)
        return raw.reshape(rows, blocks * size)

    def norm(self, name, bias=False):
        self.tensor(f"{name}.weight", D, at=1.0)
        if bias:
            self.tensor(f"{name}.bias", D)

    def linear(self, name, rows, cols, bias=False):
        self.tensor(f"{name}.weight", rows, cols)
        if bias:
            self.tensor(f"{name}.bias", rows)

    def save(self):
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_tensors_to_file()
        self.writer.close()


def attention_keys(m, layer_norm=False):
    m.u32(feed_forward_length=FF, attention__head_count=HEADS, attention__head_count_kv=HEADS, rope__dimension_count=D // HEADS)
    m.f32(**{"attention__layer_norm_epsilon" if layer_norm else "attention__layer_norm_rms_epsilon": 1e-6})


def llama_like(m, head=None, qkv_bias=False, norm_bias=False, post_norms=False, ffn_norm=True, gate=True, bias=False, fused=False):
    """Blocks of attention and a feed-forward network, with what the architecture has beside."""
    m.tensor("token_embd.weight", m.vocab, D, spread=0.05 if head else None, kind=head if head and head != "untied" else None)
    m.norm("output_norm", norm_bias)
    for i in range(N):
        b = f"blk.{i}."
        m.norm(b + "attn_norm", norm_bias)
        if fused:
            m.linear(b + "attn_qkv", 3 * D, D, True)
        else:
            for part in "qkv":
                m.linear(b + f"attn_{part}", D, D, qkv_bias)
        m.linear(b + "attn_output", D, D, bias)
        if post_norms:
            m.norm(b + "post_attention_norm")
            m.norm(b + "post_ffw_norm")
        if ffn_norm:
            m.norm(b + "ffn_norm", norm_bias)
        if gate:
            m.linear(b + "ffn_gate", FF, D)
        m.linear(b + "ffn_up", FF, D, bias)
        m.linear(b + "ffn_down", D, FF, bias)


def qwen2(m, head=TYPES.F32, bias=False, scale=None):
    """Untied head in any form; with bias, logits have one; scale: a key that libllama does not look at in this architecture."""
    attention_keys(m)
    if scale:
        m.f32(logit_scale=scale)
    llama_like(m, qkv_bias=True)
    m.tensor("output.weight", m.vocab, D, kind=head)
    if bias:
        m.tensor("output.bias", m.vocab, spread=1.0)


def gpt2(m):
    """Learned positions, layer norm, biases everywhere, tied head."""
    attention_keys(m, layer_norm=True)
    m.tensor("position_embd.weight", CONTEXT, D)
    llama_like(m, norm_bias=True, gate=False, bias=True, fused=True)


def phi2(m):
    """Attention and network side by side; logits with a bias."""
    attention_keys(m, layer_norm=True)
    llama_like(m, norm_bias=True, ffn_norm=False, gate=False, bias=True, fused=True)
    m.tensor("output.weight", m.vocab, D)
    m.tensor("output.bias", m.vocab, spread=1.0)


def gemma2(m, cap=2.0):
    """Scaled embedding, tied head, window attention, and a soft-cap on attention and logits: low, so that it bites. None: libllama's own of 30."""
    attention_keys(m)
    m.u32(attention__key_length=D // HEADS, attention__value_length=D // HEADS, attention__sliding_window=16)
    m.f32(attn_logit_softcapping=50.0, **({"final_logit_softcapping": cap} if cap else {}))
    llama_like(m, post_norms=True)


def granite(m):
    """Logits are divided by logit_scale."""
    attention_keys(m)
    m.f32(logit_scale=4.0, embedding_scale=2.0, residual_scale=0.5, attention__scale=0.1)
    llama_like(m)


def command_r(m):
    """Logits are multiplied by logit_scale."""
    attention_keys(m, layer_norm=True)
    m.f32(logit_scale=0.25)
    llama_like(m, ffn_norm=False)


def mamba(m):
    """Recurrent: nothing that it has read can be taken back."""
    inner, state, rank, conv = 2 * D, 16, 16, 4
    m.u32(ssm__conv_kernel=conv, ssm__inner_size=inner, ssm__state_size=state, ssm__time_step_rank=rank, feed_forward_length=0,
          attention__head_count=0)
    m.f32(attention__layer_norm_rms_epsilon=1e-6)
    m.tensor("token_embd.weight", m.vocab, D)
    m.norm("output_norm")
    for i in range(N):
        b = f"blk.{i}."
        m.norm(b + "attn_norm")
        m.linear(b + "ssm_in", 2 * inner, D)
        m.tensor(b + "ssm_conv1d.weight", inner, conv)
        m.tensor(b + "ssm_conv1d.bias", inner)
        m.linear(b + "ssm_x", rank + 2 * state, inner)
        m.linear(b + "ssm_dt", inner, rank, True)
        m.tensor(b + "ssm_a", inner, state, at=-1.0, spread=0.1)
        m.tensor(b + "ssm_d", inner)
        m.linear(b + "ssm_out", D, inner)


def lfm2(m):
    """Hybrid: short convolutions, which overwrite their memory, and one layer of attention."""
    kinds = [0, HEADS, 0]
    m.u32(feed_forward_length=FF, attention__head_count=HEADS, shortconv__l_cache=3, rope__dimension_count=D // HEADS)
    m.writer.add_array("lfm2.attention.head_count_kv", kinds)
    m.f32(attention__layer_norm_rms_epsilon=1e-6)
    m.tensor("token_embd.weight", m.vocab, D)
    m.norm("token_embd_norm")
    for i, heads in enumerate(kinds):
        b = f"blk.{i}."
        m.norm(b + "attn_norm")
        m.norm(b + "ffn_norm")
        for part, rows, cols in (("gate", FF, D), ("up", FF, D), ("down", D, FF)):
            m.linear(b + f"ffn_{part}", rows, cols)
        if heads:
            m.tensor(b + "attn_q_norm.weight", D // HEADS, at=1.0)
            m.tensor(b + "attn_k_norm.weight", D // HEADS, at=1.0)
            for part in ("q", "k", "v", "output"):
                m.linear(b + f"attn_{part}", D, D)
        else:
            m.tensor(b + "shortconv.conv.weight", D, 3)
            m.linear(b + "shortconv.in_proj", 3 * D, D)
            m.linear(b + "shortconv.out_proj", D, D)


MODELS = {
    **{f"qwen2-{kind}": ("qwen2", lambda m, kind=kind: qwen2(m, TYPES[kind.upper()]))
       for kind in ("f32", "f16", "q8_0", "q4_0", "q4_1", "q4_k", "q6_k")},
    "qwen2-bias": ("qwen2", lambda m: qwen2(m, TYPES.Q8_0, bias=True)),
    "gemma2-cap30": ("gemma2", lambda m: gemma2(m, None)),
    "gpt2": ("gpt2", gpt2), "phi2": ("phi2", phi2), "gemma2": ("gemma2", gemma2), "granite": ("granite", granite),
    "command-r": ("command-r", command_r), "mamba": ("mamba", mamba), "lfm2": ("lfm2", lfm2),
}

STRANGE = {"qwen2-scaled": ("qwen2", lambda m: qwen2(m, scale=0.995))}   # whose logits are not what the file says


def make(folder, name):
    path = pathlib.Path(folder) / f"{name}.gguf"
    arch, fill = (MODELS | STRANGE)[name]
    maker = Maker(path, arch, list(MODELS | STRANGE).index(name))
    fill(maker)
    maker.save()
    return path


if __name__ == "__main__":
    for wanted in sys.argv[2:] or MODELS:
        print(make(sys.argv[1], wanted))
