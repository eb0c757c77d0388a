"""Chat templates that were made to do harm."""

from __future__ import annotations

import pytest

from luthier.core.errors import ModelError
from luthier.tokens.render import check_template

HOSTILE = {
    "loop bomb": ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "did not finish"),
    "string bomb": ("{{ ('a' * 200000000) | length }}", "too much memory"),
    "output bomb": ("{{ 'a' * 2000000 }}", "too much memory"),
    "endless recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "too much memory"),
    "subclasses": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "outside its sandbox"),
    "globals": ("{{ cycler.__init__.__globals__.os.popen('id').read() }}", "outside its sandbox"),
    "attr filter": ("{{ messages | attr('__class__') | attr('__base__') }}", "outside its sandbox"),
    "mutation": ("{{ messages.append(1) }}", "outside its sandbox"),
    "syntax": ("{% if %}", "cannot be rendered"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates_are_refused(name: str) -> None:
    template, reason = HOSTILE[name]
    with pytest.raises(ModelError, match=reason) as caught:
        check_template(template, where="model", bos_token="", eos_token="")
    assert caught.value.fix


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[0]['content'] }}",
        "{% for m in messages %}{% if loop.index > 9 %}{% break %}{% endif %}{{ m | tojson(indent=2) }}{% endfor %}",
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
        "{{ strftime_now('%d %b %Y') }}{% set ns = namespace(n=0) %}{% set ns.n = 1 %}{{ ns.n }}",
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}{{ messages[0]['content'] }}",
    ],
)
def test_what_real_templates_use_is_allowed(template: str) -> None:
    check_template(template, where="model", bos_token="<s>", eos_token="</s>")
