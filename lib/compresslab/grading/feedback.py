"""A page for a student: what you got, what you missed, where to look. One file, works offline."""
# ruff: noqa: E501

from nbformat import NotebookNode

from .intake import grade_id

PAGE = """\
<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin: 1.6rem 0 .3rem }
table { border-collapse: collapse; width: 100% } td, th { text-align: left; padding: .25rem .5rem; border-bottom: 1px solid #ddd }
td:last-child, th:last-child { text-align: right; white-space: nowrap }
ul { list-style: none; padding-left: 0; margin: .3rem 0 } li { padding-left: 1.6rem; text-indent: -1.6rem }
.note { background: #fff4d6; border-left: 4px solid #b8860b; padding: .5rem 1rem }
</style></head><body>
<h1>{{ title }}</h1>
<p>{{ record.name or record.student }}</p>
{% if not record.exercises %}
<p class="note"><strong>Not graded: {{ record.state }}.</strong> {{ record.reason }}. This is not zero
points: talk to your instructor, or hand in again.</p>
{% else %}
{% if record.state != "graded" or record.reason %}
<p class="note"><strong>{{ record.state[0] | upper }}{{ record.state[1:] }}.</strong> {{ record.reason }}</p>
{% endif %}
<table><tr><th>exercise</th><th>points</th></tr>
{% for name, entry in record.exercises.items() %}
<tr><td><a href="#{{ name }}"><code>{{ name }}</code></a></td><td>{% if entry.waiting and entry.manual is not defined %}looked at by a person, later{% else %}{{ '%g' % entry.get('manual', entry.points) }} of {{ '%g' % entry.max }}{% endif %}</td></tr>
{% endfor %}
{% for name, entry in record.written.items() %}
<tr><td><a href="#{{ name }}">{{ name.replace('_', ' ') }}</a></td><td>{% if entry.waiting or entry.points is none %}read by a person, later{% else %}{{ '%g' % entry.points }} of {{ '%g' % entry.max }}{% endif %}</td></tr>
{% endfor %}
<tr><th>together</th><th>{% if row.total == "" %}not yet complete{% else %}{{ '%g' % row.total }} of {{ '%g' % (row.automatic_max + row.written_max) }}{% endif %}</th></tr>
</table>
{% for name, entry in record.exercises.items() %}
<h2 id="{{ name }}"><code>{{ name }}</code></h2>
<p>{{ where[name] }}{% if entry.manual is defined %}. A person has set the points.{% endif %}</p>
<ul>{% for fine, line in entry.lines %}<li>{{ '✔' if fine else '✘' }}&ensp;{{ line }}</li>
{% endfor %}</ul>
{% if entry.comment %}<p>{{ entry.comment }}</p>{% endif %}
{% endfor %}
{% for name, entry in record.written.items() %}
<h2 id="{{ name }}">{{ name.replace('_', ' ') }}</h2>
<p>{% if not entry.answered %}Nothing is written there.{% elif entry.comment %}{{ entry.comment }}{% elif entry.waiting or entry.points is none %}A person will read your answer.{% else %}{{ '%g' % entry.points }} of {{ '%g' % entry.max }} points.{% endif %}</p>
{% endfor %}
<p><small>Half of the points of an exercise are for the inputs of the instant check, which you can
run yourself; the other half for inputs that stay hidden. Where one of those is wrong, read what
the docstring says of that kind of input.</small></p>
{% endif %}
</body></html>
"""


def page(record: dict, row: dict, released: NotebookNode | None) -> str:
    """The page of one submission.

    Args:
        record: as in `records/`.
        row: its row in the table.
        released: the notebook that was handed out, for the titles of exercises.
    """
    from jinja2 import Environment

    where, heading, title = {}, "", record["assignment"] or "A file that was handed in"
    for cell in released.cells if released else ():
        if cell.cell_type == "markdown":
            for line in cell.source.splitlines():
                title = line[2:] if line.startswith("# ") else title
                heading = line[3:] if line.startswith("## Exercise") else heading
        where[grade_id(cell)] = heading
    template = Environment(autoescape=True).from_string(PAGE)
    return template.render(record=record, row=row, where=where, title=title)
