"""The Transformer encoder of BERT, RoBERTa, XLM-R and CamemBERT.

Size letters, used everywhere in this project:

    B   sequences in a batch
    N   tokens in a sequence (padded to the longest)
    D   hidden width
    A   attention heads
    R   relation heads (the cuts that MHA transfer makes, which need not be the attention heads)
    d   width of one head: D // A, or D // R
    L   layers
    V   vocabulary

A suffix says whose: D_s is the student's, D_t the teacher's. Layers are numbered 1..L; hidden state
0 is the output of the embeddings. `mask` is (B, N) bool, True = real token.

Source: BERT (arXiv 1810.04805, section 3), a Transformer encoder (1706.03762, section 3) with norms
after the residuals. tests/test_parity.py compares it with transformers. It has no dropout.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from minitransformer.attention import attention, merge_heads, split_heads
from minitransformer.files import UserError


class EncoderOutput(NamedTuple):
    """What a forward pass returns: tensors (B, N, D), or None in the places that `keep` drops."""

    hidden: tuple  # L + 1: the output of the embeddings, then that of each layer
    queries: tuple  # L, before the split into heads; entry i - 1 is that of layer i
    keys: tuple
    values: tuple


class Embeddings(nn.Module):
    """norm(word + position + token type)."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.word = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, input_ids, token_type_ids=None):
        """(B, N) ids -> (B, N, D)."""
        tokens = input_ids.shape[1]
        if self.config.model_type == "bert":
            # BERT counts 0..N-1, also when padded on the left, as transformers does.
            position = self.position.weight[:tokens]  # (N, D)
        else:
            # RoBERTa counts real tokens from pad_id + 1. The ids say what is padding, not the mask.
            real = (input_ids != self.config.pad_token_id).long()  # (B, N)
            position = self.position(real.cumsum(dim=1) * real + self.config.pad_token_id)
        if token_type_ids is None:
            token_type = self.token_type.weight[0]  # (D,)
        else:
            token_type = self.token_type(token_type_ids)  # (B, N, D)
        return self.norm(self.word(input_ids) + position + token_type)


class Block(nn.Module):
    """One layer: attention, then a feed-forward network, each added to its input and normalised.

    x ─┬─ query, key, value ─ attention ─ output ─ (+) ─ attention_norm ─┐
       └──────────────────────────────────────────┘                      │
    ┌─────────────────────────────────────────────────────────────────────┘
    └─┬─ expand ─ GELU ─ contract ─ (+) ─ ffn_norm ─ x of the next layer
      └─────────────────────────────┘
    """

    def __init__(self, config):
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.heads = config.num_attention_heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width, eps=eps)
        self.expand = nn.Linear(width, config.intermediate_size)
        self.contract = nn.Linear(config.intermediate_size, width)
        self.ffn_norm = nn.LayerNorm(width, eps=eps)

    def forward(self, x, query, key, value, mask, attention):
        """Return the output of the layer, given its input x and its Q, K, V; (B, N, D) each."""
        # Encoder.forward computes Q, K and V, so that it can stop there.
        query, key, value = (split_heads(part, self.heads) for part in (query, key, value))
        context = merge_heads(attention(query, key, value, mask))  # (B, A, N, d) -> (B, N, D)
        # To take less memory the sums are written into the products, which nothing else reads.
        x = self.attention_norm(self.output(context).to(x.dtype).add_(x))  # (B, N, D)
        # (B, N, D) -> (B, N, intermediate_size) -> (B, N, D)
        return self.ffn_norm(self.contract(gelu(self.expand(x))).to(x.dtype).add_(x))


def gelu(x):
    """The exact GELU, x Phi(x); written into x where no gradient needs x again."""
    return F.gelu(x) if x.requires_grad else torch.ops.aten.gelu_(x)


def cast_once(x):
    """Cast x to autocast's dtype once; else each of three Linears would keep its own copy."""
    device = x.device.type
    on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return x.to(torch.get_autocast_dtype(device)) if on else x


def may_read(attention_mask):
    """(B, N) mask -> (B, 1, 1, N) bool: which tokens every head and token may read."""
    if attention_mask.dtype.is_floating_point:  # transformers adds such masks to the scores
        raise UserError(f"the attention mask is {attention_mask.dtype}; give bool or 0 and 1")
    mask = attention_mask.bool()
    # A sequence of padding alone reads its padding: the softmax of nothing would be NaN.
    mask = mask | ~mask.any(dim=1, keepdim=True)
    return mask[:, None, None, :]


class MLMHead(nn.Module):
    """Predicts masked words: dense, GELU, norm; then the word embeddings as decoder, and a bias."""

    # Encoder.mlm_logits computes it, since the word embeddings are the encoder's.
    def __init__(self, config):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))


class Encoder(nn.Module):
    """Embeddings, L blocks, and (mlm_head=True) the head that predicts masked words."""

    def __init__(self, config, mlm_head=True):
        super().__init__()
        self.config = config
        self.attention = attention  # or explicit_attention: the same numbers
        self.embeddings = Embeddings(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.mlm_head = MLMHead(config) if mlm_head else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, generator=None):
        """BERT's random start: matrices normal(0, initializer_range), biases 0, norms 1 and 0."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                module.weight.normal_(0.0, self.config.initializer_range, generator=generator)
            if isinstance(module, nn.LayerNorm):
                module.weight.fill_(1.0)
            if isinstance(getattr(module, "bias", None), nn.Parameter):
                module.bias.zero_()
        self.embeddings.word.weight[self.config.pad_token_id].zero_()
        return self

    def forward(
        self, input_ids, attention_mask=None, token_type_ids=None, *, stop=None, keep="all"
    ):
        """Run the encoder and return its internals; nothing is stored on the modules.

        Shapes   input_ids, token_type_ids (B, N) int64; attention_mask (B, N) bool or 0/1;
                 None where nothing is padded, which is faster.
        stop     None: all L layers.
                 (m, "hidden"): end after layer m; m Q/K/V and m + 1 hidden states come back.
                 (m, "qkv"): end at layer m's Q, K, V; m of each and hidden states 0..m-1.
        keep     "all"; or, to free memory while the pass runs (None stands in their places):
                 "hidden", all hidden states and the last Q, K, V; "last", the last of each.
        """
        last, what = stop or (len(self.blocks), "hidden")
        least = {"hidden": 0, "qkv": 1}[what]
        if not least <= last <= len(self.blocks):
            raise UserError(f"layer {last} does not exist: there are {least} to {len(self.blocks)}")
        tokens, most = input_ids.shape[1], self.config.max_tokens
        if tokens > most:
            raise UserError(f"{tokens} tokens in a sequence, but the encoder has {most} positions")
        mask = None if attention_mask is None else may_read(attention_mask)  # (B, 1, 1, N)
        x = self.embeddings(input_ids, token_type_ids)  # (B, N, D)
        hidden, queries, keys, values = [x], [], [], []
        for number, block in enumerate(self.blocks[:last], start=1):
            cast = cast_once(x)
            queries.append(block.query(cast))  # before the split into heads: (B, N, D) each
            keys.append(block.key(cast))
            values.append(block.value(cast))
            if (number, what) == (last, "qkv"):
                break
            x = block(x, queries[-1], keys[-1], values[-1], mask, self.attention)
            hidden.append(x)
            # What nobody will read is freed before the next layer needs memory.
            if keep == "last":
                hidden[-2] = None
            if keep != "all" and number < last:
                queries[-1] = keys[-1] = values[-1] = None
        return EncoderOutput(tuple(hidden), tuple(queries), tuple(keys), tuple(values))

    def mlm_features(self, hidden):
        """(..., D) last hidden states -> (..., D), to be multiplied by the word embeddings."""
        if self.mlm_head is None:
            raise UserError("this encoder has no MLM head; train.py --method mlm can add one")
        return self.mlm_head.norm(F.gelu(self.mlm_head.dense(hidden)))

    def mlm_logits(self, hidden):
        """(..., D) last hidden states -> (..., V): features · word embeddings + bias."""
        return F.linear(self.mlm_features(hidden), self.embeddings.word.weight, self.mlm_head.bias)
