"""What bench.py compares: a step of this project, of plain transformers, of bertdistiller.

Each builder returns (parameters, a step that gives a loss and what its gradients are still to be
divided by, or None). All contenders have the same random weights: teacher and student as wide as
all-MiniLM-L6-v2. Nothing of the project is imported at the top, so that bench.py --other can let a
process find another checkout of it.

A contender's name says what it is, and after commas its options.
"""

from types import SimpleNamespace

import torch
from torch.nn import functional as F

OURS, PLAIN = "this project", "this project, plain"
FUSED, BLOCKED = "this project, fused attention", "this project, blocked attention"
OTHER = "this project, other checkout"
TEXTBOOK, PEER = "textbook", "bertdistiller 0.1.2"
DRY = ", no dropout"
BERT, XLMR = 30522, 250002
WIDTH, HEADS, R = 384, 12, 48

MHA = (OURS, PLAIN, PEER + DRY, PEER, TEXTBOOK + DRY, TEXTBOOK)
OD = (OURS, PLAIN, TEXTBOOK + DRY, TEXTBOOK)
ONE_FORM = (OURS, TEXTBOOK + DRY, TEXTBOOK)
# name: method, student layers, teacher layers, batch, length, vocabulary, contenders
CASES = {
    "mha-8x512": ("mha", 6, 6, 8, 512, BERT, MHA),
    "mha-32x128": ("mha", 3, 6, 32, 128, BERT, MHA),
    "hs-32x128": ("hs", 3, 6, 32, 128, BERT, ONE_FORM),
    "direct-32x128": ("direct-minilm", 3, 6, 32, 128, BERT, ONE_FORM),
    "od-250k": ("od", 2, 2, 32, 128, XLMR, OD),
    "attention-8x512": ("mha", 6, 6, 8, 512, BERT, (FUSED, BLOCKED)),
    "attention-32x128": ("mha", 3, 6, 32, 128, BERT, (FUSED, BLOCKED)),
    "growth-4x128": ("mha", 3, 6, 4, 128, BERT, (OURS,)),
    "growth-64x128": ("mha", 3, 6, 64, 128, BERT, (OURS,)),
    "infer-1x128": ("infer", 6, 6, 1, 128, BERT, (OURS, TEXTBOOK)),
    "infer-32x128": ("infer", 6, 6, 32, 128, BERT, (OURS, TEXTBOOK)),
}


def build(case, contender, batch, device):
    builders = {"this project": this_project, TEXTBOOK: textbook, PEER: bertdistiller}
    return builders[contender.split(", ")[0]](case, contender, batch, device)


def make_batch(case, device):
    _, _, _, B, N, V, _ = CASES[case]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, V, (B, N), generator=generator)
    chosen = torch.rand(B, N, generator=generator) < 0.15
    batch = {
        "ids": ids,
        "masked_ids": ids.masked_fill(chosen, 4),
        "mask": torch.ones(B, N, dtype=torch.bool),
        "positions": chosen.flatten().nonzero().flatten(),
    }
    return SimpleNamespace(**{name: tensor.to(device) for name, tensor in batch.items()})


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


def encoders(case):
    """Return student and teacher of this project; the others get their sizes and weights."""
    from minitransformer.config import EncoderConfig
    from minitransformer.model import Encoder

    method, L_s, L_t, _, _, V, _ = CASES[case]
    sizes = {"vocab_size": V, "hidden_size": WIDTH, "num_attention_heads": HEADS}
    sizes |= {"intermediate_size": 4 * WIDTH}  # else those of BERT
    if V == XLMR:
        sizes |= {"model_type": "xlm-roberta", "max_position_embeddings": 514}
        sizes |= {"type_vocab_size": 1, "pad_token_id": 1}
    configs = [EncoderConfig(num_hidden_layers=layers, **sizes) for layers in (L_s, L_t)]
    return [Encoder(config, mlm_head=method == "od") for config in configs]


def this_project(case, contender, batch, device):
    from distill import build_method
    from minitransformer import attention

    method = CASES[case][0]
    student, teacher = (encoder.to(device) for encoder in encoders(case))
    if contender in (FUSED, BLOCKED):
        name = "fused_attention" if contender == FUSED else "blocked_attention"
        student.attention = teacher.attention = getattr(attention, name)
    if method == "infer":
        return [], lambda: student(batch.ids, batch.mask, keep="last").hidden[-1]
    teacher.requires_grad_(False)
    options = {"plain": True} if contender == PLAIN else {}
    loss = build_method(method, student.config, teacher.config, relation_heads=R, **options)
    loss.to(device)
    return [*student.parameters(), *loss.parameters()], lambda: loss(student, teacher, batch)


def transformers_models(case, contender, device):
    """Whole models with fused attention; the student in training mode, as any script has it."""
    from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

    from minitransformer.convert import to_hugging_face

    models, without = [], {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    for encoder in encoders(case):
        values = encoder.config.to_dict("") | (without if contender.endswith(DRY) else {})
        config = AutoConfig.for_model(**values, attn_implementation="sdpa")
        if encoder.mlm_head is None:
            model = AutoModel.from_config(config, add_pooling_layer=False)
        else:
            model = AutoModelForMaskedLM.from_config(config)
        model.load_state_dict(to_hugging_face(encoder), strict=False)  # some are tied
        models.append(model.to(device))
    student, teacher = models
    return student.train(), teacher.eval().requires_grad_(False)


def textbook(case, contender, batch, device):
    method, L_s, L_t, *_ = CASES[case]
    student, teacher = transformers_models(case, contender, device)
    parameters = [*student.parameters()]
    maps = {name: torch.eye(WIDTH // R, device=device).repeat(R, 1, 1) for name in QKV}
    if method == "direct-minilm":
        parameters += [weight.requires_grad_() for weight in maps.values()]

    def both(ids, **keywords):
        with torch.no_grad():
            of_teacher = teacher(ids, attention_mask=batch.mask, **keywords)
        return student(ids, attention_mask=batch.mask, **keywords), of_teacher

    def infer():
        return student(batch.ids, attention_mask=batch.mask).last_hidden_state

    def hs():
        states_s, states_t = (x.hidden_states for x in both(batch.ids, output_hidden_states=True))
        pairs = [(i, i * L_t // L_s) for i in range(1, L_s + 1)]
        return sum(F.mse_loss(states_s[i], states_t[j]) for i, j in pairs), None

    def od():
        logs = []
        for model in (student, teacher):
            with torch.set_grad_enabled(model is student):
                hidden = model.roberta(batch.masked_ids, attention_mask=batch.mask)[0]
                logits = model.lm_head(hidden.flatten(0, 1)[batch.positions])
                logs.append(logits.float().log_softmax(-1))
        return F.kl_div(*logs, reduction="batchmean", log_target=True), None

    def mha():
        both(batch.ids)
        loss = 0
        for name in QKV:
            log_s, log_t = (
                (heads @ heads.mT / heads.shape[-1] ** 0.5).float().log_softmax(-1)
                for heads in (x[name].unflatten(-1, (R, -1)).transpose(1, 2) for x in seen)
            )
            rows = log_s[..., 0].numel()
            loss += F.kl_div(log_s, log_t, reduction="sum", log_target=True) / rows
        return loss, None

    def direct():
        both(batch.ids)
        loss = 0
        for name, weight in maps.items():
            heads = seen[0][name].unflatten(-1, (R, -1))
            mapped = torch.einsum("bnrd,rde->bnre", heads, weight).flatten(2)
            loss += F.mse_loss(mapped.float(), seen[1][name].float())
        return loss, None

    if method in ("mha", "direct-minilm"):
        seen = watch_qkv(student, L_s), watch_qkv(teacher, L_t - 1)
    if method == "infer":
        student.eval()
        parameters = []
    steps = {"infer": infer, "hs": hs, "od": od, "mha": mha, "direct-minilm": direct}
    return parameters, steps[method]


QKV = ("query", "key", "value")


def watch_qkv(model, layer):
    seen = {}
    for name in QKV:
        model.encoder.layer[layer - 1].attention.self.get_submodule(name).register_forward_hook(
            lambda _, inputs, output, name=name: seen.__setitem__(name, output)
        )
    return seen


def bertdistiller(case, contender, batch, device):
    from bertdistiller.distillation.minilm.trainer import BertAttentionExtractor, MiniLMTrainer

    _, L_s, L_t, *_ = CASES[case]
    student, teacher = transformers_models(case, contender, device)
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
