"""The encoder against transformers, number by number: every state, Q, K, V, logit and gradient."""

import pytest
import torch
import transformers
from conftest import PADDINGS, padded, tiny_encoder

from minitransformer.config import MODEL_TYPES
from minitransformer.convert import to_hugging_face
from minitransformer.default_teacher import default_teacher_folder


def reference(encoder):
    """The same weights in transformers' own class; every tensor is given, none left over."""
    config = transformers.AutoConfig.for_model(**encoder.config.to_dict("X"))
    model = transformers.AutoModelForMaskedLM.from_config(config).eval()
    missing, unexpected = model.load_state_dict(to_hugging_face(encoder), strict=False)
    assert not unexpected
    assert all(".decoder." in name or "position_ids" in name for name in missing)  # tied, buffers
    model.tie_weights()
    return model


def run_reference(model, ids, mask, types=None):
    """(all hidden states, [Q of each layer], K, V, logits or None) of a transformers model."""
    caught = {"query": [], "key": [], "value": []}
    for path, module in model.named_modules():
        if ".attention.self." in path and (part := path.rpartition(".")[2]) in caught:
            module.register_forward_hook(lambda _m, _i, out, part=part: caught[part].append(out))
    with torch.no_grad():
        out = model(ids, attention_mask=mask, token_type_ids=types, output_hidden_states=True)
    return out.hidden_states, *caught.values(), getattr(out, "logits", None)


def assert_close(ours, theirs, mask):
    where = slice(None) if mask is None else mask
    for our_part, their_part in zip(ours, theirs, strict=True):
        for our_tensor, their_tensor in zip(our_part, their_part, strict=True):
            assert (our_tensor - their_tensor)[where].abs().max() <= 1e-5


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_parity_with_transformers(model_type, padding):
    encoder = tiny_encoder(model_type)
    ids, mask = padded(encoder.config, padding)
    types = (ids % 3 == 0).long() if model_type == "bert" else None
    *theirs, logits = run_reference(reference(encoder), ids, mask, types)
    with torch.no_grad():
        ours = encoder(ids, mask, types)
        our_logits = encoder.mlm_logits(ours.hidden[-1])
    assert_close([*ours, [our_logits]], [*theirs, [logits]], mask)


@pytest.mark.parametrize("padding", PADDINGS)
def test_parity_on_the_default_teachers_real_weights(minilm, padding):
    encoder, _ = minilm
    model = transformers.AutoModel.from_pretrained(default_teacher_folder()).eval()
    ids, mask = padded(encoder.config, padding)
    *theirs, _ = run_reference(model, ids, mask)
    with torch.no_grad():
        ours = encoder(ids, mask)
    assert_close(ours, theirs, mask)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_gradients_equal_those_of_transformers(model_type):
    encoder = tiny_encoder(model_type).double()
    model = reference(encoder).double()
    ids, mask = padded(encoder.config, "right")
    encoder.mlm_logits(encoder(ids, mask).hidden[-1])[mask].square().mean().backward()
    model(ids, attention_mask=mask).logits[mask].square().mean().backward()
    ours = {name: p.grad for name, p in encoder.named_parameters()}
    theirs = {name: p.grad for name, p in model.named_parameters(remove_duplicate=False)}
    names = dict(zip(ours, to_hugging_face(encoder), strict=True))
    for name, gradient in ours.items():
        difference = gradient - theirs[names[name]]
        if name == "embeddings.word.weight":  # transformers' table gives its padding row none
            difference[encoder.config.pad_token_id] = 0
        assert difference.abs().max() <= 1e-12 + 1e-9 * gradient.abs().max(), name
