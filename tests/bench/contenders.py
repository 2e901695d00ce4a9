"""What bench.py compares: one step of this project, of plain transformers, of bertdistiller.

Each builder returns (the optimizer's parameters, a step that gives a loss and what its gradients
are still to be divided by, or None). All models have random weights and the same sizes: teacher and
student as wide as all-MiniLM-L6-v2.
"""

from types import SimpleNamespace

import torch
from torch.nn import functional as F

OURS, TEXTBOOK, PEER = "this project", "textbook", "bertdistiller 0.1.2"
PIPELINE, COMPILED = "this project, reading docs", "this project, compiled"
FUSED, BLOCKED = "this project, fused attention", "this project, blocked attention"
MASKED, ALL = "textbook, masked positions", "textbook, all positions"
BERT, XLMR = 30522, 250002
WIDTH, HEADS, R = 384, 12, 48

# name: method, student layers, teacher layers, batch, length, vocabulary, contenders
CASES = {
    "mha-8x512": ("mha", 6, 6, 8, 512, BERT, (OURS, PEER, TEXTBOOK)),
    "mha-32x128": ("mha", 3, 6, 32, 128, BERT, (OURS, PEER, TEXTBOOK)),
    "hs-32x128": ("hs", 3, 6, 32, 128, BERT, (OURS, TEXTBOOK)),
    "direct-32x128": ("direct-minilm", 3, 6, 32, 128, BERT, (OURS, TEXTBOOK)),
    "od-250k": ("od", 2, 2, 32, 128, XLMR, (OURS, MASKED, ALL)),
    "pipeline-32x128": ("mha", 3, 6, 32, 128, BERT, (OURS, PIPELINE)),
    "compile-32x128": ("mha", 3, 6, 32, 128, BERT, (OURS, COMPILED)),
    "attention-8x512": ("mha", 6, 6, 8, 512, BERT, (FUSED, BLOCKED)),
    "attention-32x128": ("mha", 3, 6, 32, 128, BERT, (FUSED, BLOCKED)),
    "growth-4x128": ("mha", 3, 6, 4, 128, BERT, (OURS,)),
    "growth-64x128": ("mha", 3, 6, 64, 128, BERT, (OURS,)),
    "infer-1x128": ("infer", 6, 6, 1, 128, BERT, (OURS, TEXTBOOK)),
    "infer-32x128": ("infer", 6, 6, 32, 128, BERT, (OURS, TEXTBOOK)),
}


def build(case, contender, batch, device):
    if contender == PIPELINE:
        batch = real_batches(case, device)
    ours = dict.fromkeys((OURS, PIPELINE, COMPILED, FUSED, BLOCKED), this_project)
    builder = (ours | {PEER: bertdistiller}).get(contender, textbook)
    return builder(case, contender, batch, device)


def make_batch(case, device):
    _, _, _, B, N, V, _ = CASES[case]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, V, (B, N), generator=generator)
    chosen = torch.rand(B, N, generator=generator) < 0.15
    return SimpleNamespace(
        ids=ids.to(device),
        masked_ids=ids.masked_fill(chosen, 4).to(device),
        chosen=chosen.to(device),
        mask=torch.ones(B, N, dtype=torch.bool, device=device),
    )


def arithmetic(case, positions):
    """FLOPs of a step, up to the layers that the method needs; backward costs twice forward."""
    method, L_s, L_t, B, N, V, _ = CASES[case]
    D, tokens = WIDTH, B * N
    layer = tokens * (2 * 12 * D * D + 4 * N * D)  # four D x D, FFN 4 D; scores and their product
    qkv = tokens * 2 * 3 * D * D
    if method == "infer":
        return L_s * layer
    if method in ("mha", "direct-minilm"):
        student, teacher = (L_s - 1) * layer + qkv, (L_t - 2) * layer + qkv
    else:
        student, teacher = L_s * layer, L_t * layer
    # Relations of Q, K and V: two tables of scores, one product for the gradient.
    relations = 3 * 3 * 2 * tokens * N * D if method == "mha" else 0
    # Vocabulary: forward of both, backward of one.
    vocabulary = (2 + 2) * 2 * positions * V * D if method == "od" else 0
    return 3 * student + teacher + relations + vocabulary


def settings(case, layers):
    xlmr = CASES[case][5] == XLMR
    return {
        "vocab_size": CASES[case][5],
        "hidden_size": WIDTH,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "intermediate_size": 4 * WIDTH,
        "hidden_act": "gelu",
        "max_position_embeddings": 514 if xlmr else 512,
        "type_vocab_size": 1 if xlmr else 2,
        "pad_token_id": 1 if xlmr else 0,
        "layer_norm_eps": 1e-5,
    }


def this_project(case, contender, batch, device):
    from distill import build_method
    from minitransformer.attention import blocked_attention, fused_attention
    from minitransformer.config import EncoderConfig
    from minitransformer.model import Encoder

    method, L_s, L_t, _, _, V, _ = CASES[case]
    model_type = {"model_type": "xlm-roberta" if V == XLMR else "bert"}
    student, teacher = (
        Encoder(
            EncoderConfig.from_dict(settings(case, layers) | model_type), mlm_head=method == "od"
        ).to(device)
        for layers in (L_s, L_t)
    )
    if method == "infer":
        return [], lambda: student(batch.ids, batch.mask, keep="last").hidden[-1]
    teacher.requires_grad_(False)
    if contender in (FUSED, BLOCKED):
        form = fused_attention if contender == FUSED else blocked_attention
        student.attention = teacher.attention = form
    if contender == COMPILED:  # as train.py --compile does
        student.compile()
        teacher.compile()
    loss = build_method(method, student.config, teacher.config, relation_heads=R).to(device)
    parameters = [*student.parameters(), *loss.parameters()]
    if contender == PIPELINE:
        return parameters, lambda: loss(student, teacher, next(batch))
    return parameters, lambda: loss(student, teacher, batch)


def real_batches(case, device):
    """The batches that train.py would make of the docs text, one after the other."""
    from distill.data.batches import Text
    from minitransformer import load_pretrained

    _, _, _, B, N, _, _ = CASES[case]
    _, tokenizer = load_pretrained("embedded")
    text = Text(["docs"], tokenizer, N)
    while True:
        yield text.step(B, 1, masked=False)[0].to(device)


def transformers_models(case, device):
    """Whole models with fused attention; the student in training mode, as any script has it."""
    import transformers

    method, L_s, L_t, _, _, V, _ = CASES[case]
    family = "XLMRoberta" if V == XLMR else "Bert"
    Config = getattr(transformers, family + "Config")
    Model = getattr(transformers, family + ("ForMaskedLM" if method == "od" else "Model"))
    without = {} if method == "od" else {"add_pooling_layer": False}
    student, teacher = (
        Model(Config(**settings(case, layers), attn_implementation="sdpa"), **without).to(device)
        for layers in (L_s, L_t)
    )
    return student.train(), teacher.eval().requires_grad_(False)


def textbook(case, contender, batch, device):
    method, L_s, L_t, *_ = CASES[case]
    student, teacher = transformers_models(case, device)
    parameters = [*student.parameters()]
    if method == "infer":
        student.eval()
        return [], lambda: student(batch.ids, attention_mask=batch.mask).last_hidden_state
    if method == "od":
        return parameters, textbook_od(student, teacher, batch, contender)

    def run(**keywords):
        with torch.no_grad():
            of_teacher = teacher(batch.ids, attention_mask=batch.mask, **keywords)
        return student(batch.ids, attention_mask=batch.mask, **keywords), of_teacher

    def hs():
        states_s, states_t = (x.hidden_states for x in run(output_hidden_states=True))
        pairs = ((i, i * L_t // L_s) for i in range(1, L_s + 1))
        return sum(F.mse_loss(states_s[i], states_t[j]) for i, j in pairs), None

    if method == "hs":
        return parameters, hs
    qkv_s, qkv_t = watch_qkv(student, L_s), watch_qkv(teacher, L_t - 1)
    maps = {
        name: torch.eye(WIDTH // R, device=device).repeat(R, 1, 1).requires_grad_()
        for name in ("query", "key", "value")
    }

    def relations(x):
        heads = x.unflatten(-1, (R, -1)).transpose(1, 2)
        return (heads @ heads.mT / heads.shape[-1] ** 0.5).float().log_softmax(-1)

    def mha(name):
        log_s, log_t = relations(qkv_s[name]), relations(qkv_t[name])
        return F.kl_div(log_s, log_t, reduction="sum", log_target=True) / log_s[..., 0].numel()

    def direct(name):
        heads = qkv_s[name].unflatten(-1, (R, -1))
        mapped = torch.einsum("bnrd,rde->bnre", heads, maps[name]).flatten(2)
        return F.mse_loss(mapped.float(), qkv_t[name].float())

    def step():
        run()
        return sum((mha if method == "mha" else direct)(name) for name in maps), None

    return parameters + (list(maps.values()) if method == "direct-minilm" else []), step


def watch_qkv(model, layer):
    """Q, K, V of one layer, taken where the model computes them."""
    seen = {}
    for name in ("query", "key", "value"):
        model.encoder.layer[layer - 1].attention.self.get_submodule(name).register_forward_hook(
            lambda _, inputs, output, name=name: seen.__setitem__(name, output)
        )
    return seen


def textbook_od(student, teacher, batch, contender):
    def logits(model):
        if contender == ALL:
            return model(batch.masked_ids, attention_mask=batch.mask).logits.flatten(0, 1)
        hidden = model.roberta(batch.masked_ids, attention_mask=batch.mask).last_hidden_state
        return model.lm_head(hidden[batch.chosen])

    def step():
        with torch.no_grad():
            log_t = logits(teacher).float().log_softmax(-1)
        log_s = logits(student).float().log_softmax(-1)
        return F.kl_div(log_s, log_t, reduction="batchmean", log_target=True), None

    return step


def bertdistiller(case, contender, batch, device):
    from bertdistiller.distillation.minilm.trainer import BertAttentionExtractor, MiniLMTrainer

    _, L_s, L_t, *_ = CASES[case]
    student, teacher = transformers_models(case, device)
    trainer = MiniLMTrainer.__new__(MiniLMTrainer)  # its loss without its data loading and logging
    trainer.teacher, trainer.attention_extractor = teacher, BertAttentionExtractor()
    trainer.kl_loss = torch.nn.KLDivLoss(reduction="sum")
    trainer.args = SimpleNamespace(
        teacher_layer=L_t - 1,
        student_layer=L_s,
        num_relation_heads=R,
        relations={(1, 1): 1.0, (2, 2): 1.0, (3, 3): 1.0},
    )
    inputs = {"input_ids": batch.ids, "attention_mask": batch.mask.long()}
    return [*student.parameters()], lambda: (trainer.compute_loss(student, inputs), None)
