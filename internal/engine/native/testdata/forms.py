"""Writes forms/*.onnx.gz: small encoders of public architectures with random weights, as PyTorch's two
exporters write them. TestForms reads them.

    pip install torch==2.15.0 transformers==5.24.0 onnx==1.23.2 onnxscript==0.7.2
    python forms.py forms

Names are ARCHITECTURE-ATTENTION-EXPORTER: attention is what transformers calls its implementation, or bmm for
products of three dimensions, as its CLIP and BART had them until 4.41; ts14 and ts17 are the TorchScript exporter with
these opsets, dy18 and dy20 torch.export's.
"""

import gzip
import pathlib
import sys
import tempfile

import torch
import transformers as hf
from torch import nn

WIDTH, HEADS, INNER, VOCAB, POSITIONS, LAYERS = 16, 2, 32, 64, 48, 2
SIZES = dict(hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS, intermediate_size=INNER)
TEXT = dict(SIZES, vocab_size=VOCAB, max_position_embeddings=POSITIONS)
ROBERTA = dict(TEXT, max_position_embeddings=POSITIONS + 2, type_vocab_size=1, pad_token_id=1)
IMAGE = dict(SIZES, image_size=32, patch_size=8)
STEP = 64  # weights are multiples of 1/64, which compress


class Pooled(nn.Module):
    """The tokens of an encoder, or what libraries of embeddings make of them."""

    def __init__(self, encoder, pooling):
        super().__init__()
        self.encoder, self.pooling = encoder, pooling

    def forward(self, input_ids, attention_mask, token_type_ids=None):
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        tokens = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **types)[0]
        if self.pooling == "first":  # BGE
            pooled = tokens[:, 0]
        elif self.pooling == "mean":  # sentence-transformers
            shown = attention_mask.unsqueeze(-1).expand(tokens.size()).float()
            pooled = (tokens * shown).sum(1) / shown.sum(1).clamp(min=1e-9)
        elif self.pooling == "filled":  # E5's average_pool
            shown = tokens.masked_fill(~attention_mask[..., None].bool(), 0.0)
            pooled = shown.sum(dim=1) / attention_mask.sum(dim=1)[..., None]
        else:
            return tokens
        return nn.functional.normalize(pooled, p=2, dim=1)


class Image(nn.Module):
    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, pixel_values):
        return self.encoder(pixel_values=pixel_values)[0]


class Bmm(nn.Module):
    """Attention by torch.bmm over batch * heads."""

    def __init__(self):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.size = WIDTH // HEADS

    def split(self, x, length, batch):
        return x.view(batch, length, HEADS, self.size).transpose(1, 2).contiguous()

    def forward(self, x, masks):
        batch, length, width = x.size()
        q = self.q_proj(x) * self.size**-0.5
        k, v = self.split(self.k_proj(x), -1, batch), self.split(self.v_proj(x), -1, batch)
        shape = (batch * HEADS, -1, self.size)
        q, k, v = self.split(q, length, batch).view(*shape), k.view(*shape), v.view(*shape)
        sources = k.size(1)
        scores = torch.bmm(q, k.transpose(1, 2))
        for mask in masks:
            scores = scores.view(batch, HEADS, length, sources) + mask
            scores = scores.view(batch * HEADS, length, sources)
        out = torch.bmm(nn.functional.softmax(scores, dim=-1), v)
        out = out.view(batch, HEADS, length, self.size).transpose(1, 2)
        return self.out_proj(out.reshape(batch, length, width))


class BmmEncoder(nn.Module):
    """CLIP's text tower (first: normalization before, causal) or BART's encoder."""

    def __init__(self, first):
        super().__init__()
        self.first = first
        self.words, self.places = nn.Embedding(VOCAB, WIDTH), nn.Embedding(POSITIONS, WIDTH)
        self.layers = nn.ModuleList(
            nn.ModuleDict(dict(attention=Bmm(), norm1=nn.LayerNorm(WIDTH), up=nn.Linear(WIDTH, INNER), down=nn.Linear(INNER, WIDTH), norm2=nn.LayerNorm(WIDTH)))
            for _ in range(LAYERS)
        )
        self.register_buffer("positions", torch.arange(POSITIONS).unsqueeze(0))

    def forward(self, input_ids, attention_mask):
        batch, length = input_ids.shape
        x = self.words(input_ids) + self.places(self.positions[:, :length])
        lowest = torch.finfo(torch.float32).min
        shown = attention_mask[:, None, None, :].expand(batch, 1, length, length).to(torch.float32)
        masks = [(1.0 - shown).masked_fill((1.0 - shown).to(torch.bool), lowest)]
        if self.first:
            causal = torch.full((length, length), lowest).triu(1)
            masks.insert(0, causal[None, None, :, :].expand(batch, 1, length, length))
        for layer in self.layers:
            y = layer["norm1"](x) if self.first else x
            y = x + layer["attention"](y, masks)
            x = y if self.first else layer["norm1"](y)
            y = layer["up"](layer["norm2"](x) if self.first else x)
            y = y * torch.sigmoid(1.702 * y) if self.first else nn.functional.gelu(y)
            x = x + layer["down"](y)
            x = x if self.first else layer["norm2"](x)
        return (x,)


class Mha(nn.Module):
    """torch.nn.TransformerEncoder, and so torch.nn.MultiheadAttention."""

    def __init__(self, first):
        super().__init__()
        torch.backends.mha.set_fastpath_enabled(False)
        self.words, self.padded = nn.Embedding(VOCAB, WIDTH), not first
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, INNER, activation="gelu", norm_first=first, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)

    def forward(self, input_ids, attention_mask):
        return (self.layers(self.words(input_ids), src_key_padding_mask=attention_mask == 0 if self.padded else None),)


class Torchvision(nn.Module):
    """A vision transformer as torchvision and OpenCLIP have it: torch.nn.MultiheadAttention."""

    def __init__(self):
        super().__init__()
        torch.backends.mha.set_fastpath_enabled(False)  # an operator that the TorchScript exporter does not know
        self.patches = nn.Conv2d(3, WIDTH, 8, 8)
        self.cls, self.places = nn.Parameter(torch.zeros(1, 1, WIDTH)), nn.Parameter(torch.zeros(1, 17, WIDTH))
        self.layers = nn.ModuleList(
            nn.ModuleDict(dict(norm1=nn.LayerNorm(WIDTH), attention=nn.MultiheadAttention(WIDTH, HEADS, batch_first=True), norm2=nn.LayerNorm(WIDTH), up=nn.Linear(WIDTH, INNER), down=nn.Linear(INNER, WIDTH)))
            for _ in range(LAYERS)
        )
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, pixel_values):
        n = pixel_values.shape[0]
        x = self.patches(pixel_values).reshape(n, WIDTH, 16).permute(0, 2, 1)
        x = torch.cat((self.cls.expand(n, -1, -1), x), dim=1) + self.places
        for layer in self.layers:
            y = layer["norm1"](x)
            x = x + layer["attention"](y, y, y, need_weights=False)[0]
            x = x + layer["down"](nn.functional.gelu(layer["up"](layer["norm2"](x))))
        return self.norm(x)


class Timm(nn.Module):
    """A vision transformer as timm and DINOv2's own code have it: one projection for queries, keys and values, and
    layer scale."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 8, 8)
        self.cls, self.places = nn.Parameter(torch.zeros(1, 1, WIDTH)), nn.Parameter(torch.zeros(1, 17, WIDTH))
        self.layers = nn.ModuleList(
            nn.ModuleDict(dict(norm1=nn.LayerNorm(WIDTH), qkv=nn.Linear(WIDTH, 3 * WIDTH), out=nn.Linear(WIDTH, WIDTH), norm2=nn.LayerNorm(WIDTH), up=nn.Linear(WIDTH, INNER), down=nn.Linear(INNER, WIDTH)))
            for _ in range(LAYERS)
        )
        self.scales = nn.ParameterList(nn.Parameter(torch.ones(WIDTH)) for _ in range(2 * LAYERS))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, pixel_values):
        x = self.patches(pixel_values).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls.expand(x.shape[0], -1, -1), x), dim=1) + self.places
        for i, layer in enumerate(self.layers):
            y = layer["norm1"](x)
            b, n, c = y.shape
            q, k, v = layer["qkv"](y).reshape(b, n, 3, HEADS, c // HEADS).permute(2, 0, 3, 1, 4).unbind(0)
            y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c)
            x = x + layer["out"](y) * self.scales[2 * i]
            x = x + layer["down"](nn.functional.gelu(layer["up"](layer["norm2"](x)))) * self.scales[2 * i + 1]
        return self.norm(x)


def model(name, attention):
    k = dict(attn_implementation=attention)
    bert = lambda: hf.BertModel(hf.BertConfig(**TEXT, **k), add_pooling_layer=False)
    texts = {
        "bert": (bert, ""),
        "minilm": (bert, "mean"),
        "bge": (bert, "first"),
        "e5": (bert, "filled"),
        "roberta": (lambda: hf.RobertaModel(hf.RobertaConfig(**ROBERTA, **k), add_pooling_layer=False), ""),
        "xlmr": (lambda: hf.XLMRobertaModel(hf.XLMRobertaConfig(**ROBERTA, **k), add_pooling_layer=False), "mean"),
        "mpnet": (lambda: hf.MPNetModel(hf.MPNetConfig(**dict(TEXT, max_position_embeddings=POSITIONS + 2, pad_token_id=1)), add_pooling_layer=False), "mean"),
        "albert": (lambda: hf.AlbertModel(hf.AlbertConfig(**TEXT, embedding_size=8, **k), add_pooling_layer=False), ""),
        "distilbert": (lambda: hf.DistilBertModel(hf.DistilBertConfig(dim=WIDTH, n_layers=LAYERS, n_heads=HEADS, hidden_dim=INNER, vocab_size=VOCAB, max_position_embeddings=POSITIONS, **k)), ""),
        "electra": (lambda: hf.ElectraModel(hf.ElectraConfig(**TEXT, embedding_size=8, **k)), ""),
        "clip-text": (lambda: hf.CLIPTextModel(hf.CLIPTextConfig(**TEXT, eos_token_id=VOCAB - 1, **k)), ""),
        "bart": (lambda: hf.BartModel(hf.BartConfig(vocab_size=VOCAB, d_model=WIDTH, encoder_layers=LAYERS, decoder_layers=LAYERS, encoder_attention_heads=HEADS, decoder_attention_heads=HEADS, encoder_ffn_dim=INNER, decoder_ffn_dim=INNER, max_position_embeddings=POSITIONS, use_cache=False, **k)), ""),
        "modernbert": (lambda: hf.ModernBertModel(hf.ModernBertConfig(**TEXT, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2, local_attention=16, **k)), ""),
        "nomic": (lambda: hf.NomicBertModel(hf.NomicBertConfig(**TEXT, type_vocab_size=2, **k), add_pooling_layer=False), "mean"),
        "gte": (lambda: hf.GteModel(hf.GteConfig(**TEXT, **k), add_pooling_layer=False), "first"),
        "eurobert": (lambda: hf.EuroBertModel(hf.EuroBertConfig(**TEXT, num_key_value_heads=HEADS, pad_token_id=1, bos_token_id=0, eos_token_id=2, mask_token_id=3, **k)), ""),
        "esm": (lambda: hf.EsmModel(hf.EsmConfig(**ROBERTA, mask_token_id=3, position_embedding_type="rotary", **k), add_pooling_layer=False), ""),
        "jina3": (lambda: hf.JinaEmbeddingsV3Model(hf.JinaEmbeddingsV3Config(**TEXT, type_vocab_size=1, pad_token_id=1, **k), add_pooling_layer=False), "mean"),
    }
    t5 = dict(vocab_size=VOCAB, d_model=WIDTH, d_kv=WIDTH // HEADS, d_ff=INNER, num_layers=LAYERS, num_heads=HEADS, pad_token_id=1, decoder_start_token_id=1, **k)
    texts["t5-encoder"] = (lambda: hf.T5EncoderModel(hf.T5Config(**t5)), "")
    texts["flan-t5-encoder"] = (lambda: hf.T5EncoderModel(hf.T5Config(**t5, feed_forward_proj="gated-gelu")), "mean")
    images = {
        "vit": lambda: hf.ViTModel(hf.ViTConfig(**IMAGE, **k), add_pooling_layer=False),
        "clip-image": lambda: hf.CLIPVisionModel(hf.CLIPVisionConfig(**IMAGE, **k)),
        "siglip-image": lambda: hf.SiglipVisionModel(hf.SiglipVisionConfig(**IMAGE, **k)),
        "dinov2-image": lambda: hf.Dinov2Model(hf.Dinov2Config(**{n: v for n, v in IMAGE.items() if n != "intermediate_size"}, mlp_ratio=INNER // WIDTH, **k)),
    }
    for n in ("mha", "mha-first"):
        texts[n] = (lambda n=n: Mha(n == "mha-first"), "")
    images["blip-image"] = lambda: hf.BlipVisionModel(hf.BlipVisionConfig(**IMAGE, **k))
    if name in ("timm-image", "torchvision-image"):
        return (Timm() if name == "timm-image" else Torchvision()).eval(), (torch.randn(2, 3, 32, 32),), ["pixel_values"]
    if name in images:
        return Image(images[name]().eval()), (torch.randn(2, 3, 32, 32),), ["pixel_values"]
    ids, mask = torch.randint(3, VOCAB - 1, (2, 11)), torch.ones(2, 11, dtype=torch.long)
    mask[1, 8:] = 0
    if attention == "bmm":
        return Pooled(BmmEncoder(name == "clip-text"), ""), (ids, mask), ["input_ids", "attention_mask"]
    make, pooling = texts[name]
    args, names = (ids, mask), ["input_ids", "attention_mask"]
    if name in ("bert", "minilm", "bge", "e5", "albert", "electra"):
        args, names = args + (torch.zeros_like(ids),), names + ["token_type_ids"]
    return Pooled(make(), pooling), args, names


def write(out, name, attention, exporter):
    torch.manual_seed(1)
    m, args, names = model(name, attention)
    m.eval()
    with torch.no_grad():
        for p in m.parameters():
            # Vectors unlike 1 and 0, matrices that make scores and activations of size 1.
            p.copy_(p + torch.randn_like(p) * 0.1 if p.dim() == 1 else torch.randn_like(p) * p.shape[-1] ** -0.5)
            p.copy_((p * STEP).round() / STEP)
    axes = {n: {0: "batch"} if n == "pixel_values" else {0: "batch", 1: "length"} for n in names}
    how, opset = exporter[:2], int(exporter[2:])
    with tempfile.TemporaryDirectory() as d:
        path = pathlib.Path(d) / "model.onnx"
        if how == "ts":
            torch.onnx.export(m, args, path, input_names=names, output_names=["y"], dynamic_axes={**axes, "y": axes[names[0]]}, opset_version=opset, dynamo=False)
        else:
            dynamic = tuple({i: torch.export.Dim.DYNAMIC for i in axes[n]} for n in names)
            torch.onnx.export(m, args, path, input_names=names, output_names=["y"], dynamic_shapes=dynamic, opset_version=opset, dynamo=True, external_data=False, verbose=False)
        raw = strip(path)
    (out / f"{name}-{attention}-{exporter}.onnx.gz").write_bytes(gzip.compress(raw, 9, mtime=0))


def strip(path):
    """Without what the exporters note of the machine that they ran on."""
    import onnx

    m = onnx.load(path)
    for n in m.graph.node:
        del n.metadata_props[:]
        n.ClearField("doc_string")
    for v in [*m.graph.input, *m.graph.output, *m.graph.value_info, *m.graph.initializer]:
        del v.metadata_props[:]
    del m.graph.value_info[:], m.metadata_props[:], m.graph.metadata_props[:]
    m.ClearField("functions")
    return m.SerializeToString(deterministic=True)


def main():
    out = pathlib.Path(sys.argv[1])
    texts = ["bert", "minilm", "bge", "e5", "roberta", "xlmr", "mpnet", "albert", "distilbert", "electra", "clip-text"]
    forms = [(n, "sdpa", e) for n in [*texts, "vit", "clip-image", "siglip-image", "dinov2-image", "timm-image", "torchvision-image", "modernbert", "nomic", "gte", "eurobert", "jina3", "esm"] for e in ("ts14", "dy18")]
    forms += [(n, "sdpa", "ts14") for n in ("t5-encoder", "flan-t5-encoder")]
    forms += [(n, "eager", "ts17") for n in ("bert", "clip-text", "vit")] + [("roberta", "eager", "dy20")]
    forms += [(n, "sdpa", "dy18") for n in ("mha", "mha-first")]
    forms += [(n, "eager", "dy18") for n in ("t5-encoder", "flan-t5-encoder")] + [("blip-image", "eager", e) for e in ("ts14", "dy18")]
    forms += [("bart", "sdpa", "ts14"), ("bart", "eager", "ts17")]
    forms += [(n, "bmm", e) for n in ("clip-text", "bart-encoder") for e in ("ts14", "dy18")]
    for f in forms:
        write(out, *f)
        print(*f, flush=True)


if __name__ == "__main__":
    main()
