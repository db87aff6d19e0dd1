"""The script of the report's page: any two systems, and single judgements.

It makes every element itself and fills it as text, so that no text of the data
can become markup; it asks nothing of anywhere.
"""

SCRIPT = r"""
'use strict';
(() => {
  const PAGE = 25;
  const data = JSON.parse(document.getElementById('data').textContent);
  const get = (id) => document.getElementById(id);
  const shown = (value) => value === null ? 'n/a' : String(+value.toFixed(3));

  function make(tag, parent, text, kind) {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    if (kind) element.className = kind;
    if (parent) parent.append(element);
    return element;
  }

  const judgements = data.judgements.map((judgement, index) => {
    const row = data.rows[judgement.row];
    return {...judgement, index, row, text: null};
  });
  judgements.sort((a, b) => (b.error ?? -1) - (a.error ?? -1));

  function options(id, values) {
    for (const value of [...new Set(values)].sort()) {
      const option = make('option', get(id), String(value));
      option.value = String(value);
    }
  }
  options('f-benchmark', judgements.map((j) => j.row.benchmark));
  options('f-method', judgements.map((j) => j.method));
  options('f-seed', judgements.map((j) => j.seed));

  const pairOf = (row) => row.pair ? `pair ${row.pair}` : '';

  // Lower case, made when it is first looked for.
  function textOf(judgement) {
    judgement.text ??= [
      judgement.row.id, pairOf(judgement.row), ...judgement.row.prompt,
      judgement.row.response, ...judgement.cots,
    ].join('\n').toLowerCase();
    return judgement.text;
  }

  function interval(mean, ends) {
    return ends === null ? shown(mean) :
      `${shown(mean)} (${shown(ends[0])}, ${shown(ends[1])})`;
  }

  // Of two systems one order is known; the other has the signs changed.
  function compare() {
    const [first, second] = ['d-first', 'd-second'].map((id) => get(id).value);
    const pair = data.differences.find((d) =>
      (d.a === first && d.b === second) || (d.a === second && d.b === first));
    const body = get('d-table').tBodies[0];
    body.replaceChildren();
    if (!pair) {
      get('d-note').textContent = 'Choose two different systems.';
      return;
    }
    const turned = pair.a !== first;
    const sign = turned ? -1 : 1;
    get('d-note').textContent =
      `Seeds: ${pair.seeds[Number(turned)]}, rows: ${pair.rows}. Above zero ` +
      'the first is better, but for RMSE and MAE, which are errors.';
    for (const figure of pair.figures) {
      const line = make('tr', body);
      make('td', line, figure.name);
      const mean = figure.mean === null ? null : sign * figure.mean;
      const ends = figure.ci === null ? null :
        figure.ci.map((end) => sign * end).sort((a, b) => a - b);
      const value = make('td', line, interval(mean, ends), 'number');
      value.title = figure.reason ?? '';
      make('td', line, ends === null ? 'n/a' :
        (ends[0] > 0 || ends[1] < 0 ? 'yes' : 'no'));
    }
  }

  if (data.differences.length) {
    const systems = data.differences.flatMap((d) => [d.a, d.b]);
    for (const id of ['d-first', 'd-second']) {
      options(id, systems);
      get(id).addEventListener('change', compare);
    }
    get('d-second').selectedIndex = 1;
    compare();
  }

  let page = 0;
  let found = [];

  function filter() {
    const value = (id) => get(id).value;
    const least = Number(value('f-error'));
    const words = value('f-words').toLowerCase();
    const kind = value('f-invalid');
    found = judgements.filter((j) =>
      (!value('f-benchmark') || j.row.benchmark === value('f-benchmark')) &&
      (!value('f-method') || j.method === value('f-method')) &&
      (!value('f-seed') || String(j.seed) === value('f-seed')) &&
      (!least || (j.error !== null && j.error >= least)) &&
      (kind === '' || (kind === 'invalid') === (j.invalid !== null)) &&
      (!words || textOf(j).includes(words)));
    page = 0;
    draw();
  }

  function draw() {
    const pages = Math.max(1, Math.ceil(found.length / PAGE));
    page = Math.min(page, pages - 1);
    const body = get('list').tBodies[0];
    body.replaceChildren();
    for (const judgement of found.slice(page * PAGE, (page + 1) * PAGE)) {
      const line = make('tr', body);
      const opener = make('button', make('td', line), judgement.row.id);
      opener.type = 'button';
      opener.addEventListener('click', () => open(judgement));
      make('td', line, judgement.row.benchmark, 'wide');
      make('td', line, judgement.method);
      make('td', line, String(judgement.seed), 'wide');
      make('td', line, shown(judgement.row.score), 'number');
      make('td', line, judgement.invalid === null ?
        shown(judgement.prediction) : 'invalid',
        judgement.invalid === null ? 'number' : 'number bad');
      make('td', line, shown(judgement.error), 'number');
    }
    get('count').textContent = `${found.length.toLocaleString('en')} found; ` +
      `page ${page + 1} of ${pages}`;
    get('before').disabled = page === 0;
    get('after').disabled = page >= pages - 1;
  }

  function meanOf(distributions) {
    const known = distributions.filter((d) => d !== null);
    if (!known.length) return null;
    return known[0].map((_, i) =>
      known.reduce((sum, d) => sum + d[i], 0) / known.length);
  }

  function nearest(score) {
    let best = 0;
    data.values.forEach((value, i) => {
      if (Math.abs(value - score) < Math.abs(data.values[best] - score)) {
        best = i;
      }
    });
    return best;
  }

  function bars(parent, distribution, ratings) {
    const table = make('div', parent, undefined, 'bars');
    data.grid.forEach((text, i) => {
      make('span', table, text);
      const bar = make('div', make('div', table), '', 'bar');
      bar.style.width = `${100 * (distribution ? distribution[i] : 0)}%`;
      make('span', table, distribution ? distribution[i].toFixed(3) : 'n/a');
      const here = ratings.filter((score) => nearest(score) === i).length;
      make('span', table, '\u25CF'.repeat(Math.min(here, 20)), 'raters');
    });
  }

  function facts(judgement) {
    const row = judgement.row;
    const parts = [
      `${judgement.method}, seed ${judgement.seed}, on ${row.benchmark}`,
      `rater's score ${shown(row.score)}`,
      judgement.invalid === null ?
        `prediction ${shown(judgement.prediction)}` :
        `invalid: ${judgement.invalid}; scored as ${shown(data.fallback)}`,
      `error ${shown(judgement.error)}`,
    ];
    if (row.human_score !== null) parts.push(`human ${shown(row.human_score)}`);
    if (row.pair) parts.push(pairOf(row));
    if (row.category) parts.push(`category ${row.category}`);
    if (row.source) parts.push(`response of ${row.source}`);
    return parts.join(' \u00B7 ');
  }

  function open(judgement) {
    const row = judgement.row;
    get('title').textContent = row.id;
    const body = get('body');
    body.replaceChildren();
    make('p', body, facts(judgement));
    make('h3', body, 'Distribution over the grid' +
      (judgement.distributions.length > 1 ? ', mean over CoTs' : ''));
    bars(body, meanOf(judgement.distributions), row.ratings);
    make('p', body, row.ratings.length ?
      `\u25CF raters: ${row.ratings.map(shown).join(', ')}` :
      'no rater has scored it');
    judgement.cots.forEach((text, i) => {
      const one = make('details', body);
      one.open = i === 0;
      make('summary', one, `CoT ${i + 1} of ${judgement.cots.length}: ` +
        `ended by ${judgement.finish_reasons[i] ?? 'n/a'}, ` +
        `greedy score ${shown(judgement.decoded[i] ?? null)}`);
      make('pre', one, text || '(none)');
      if (judgement.cots.length > 1) {
        bars(one, judgement.distributions[i], row.ratings);
      }
    });
    const parted = row.prompt.length === 3;
    const response = parted ? row.prompt[1] : row.response;
    make('h3', body, 'Response');
    make('pre', body, response || '(not known apart from the prompt)');
    make('h3', body, 'Prompt');
    const prompt = make('pre', body);
    row.prompt.forEach((piece, i) => {
      make(parted && i === 1 ? 'mark' : 'span', prompt, piece);
    });
    if (!row.prompt.length) prompt.textContent = '(not in the data)';
    const at = found.indexOf(judgement);
    get('previous').disabled = at < 1;
    get('next').disabled = at < 0 || at >= found.length - 1;
    get('previous').onclick = () => open(found[at - 1]);
    get('next').onclick = () => open(found[at + 1]);
    if (!get('judgement').open) get('judgement').showModal();
    get('judgement').scrollTop = 0;
  }

  for (const id of ['benchmark', 'method', 'seed', 'error', 'invalid']) {
    get(`f-${id}`).addEventListener('change', filter);
  }
  get('f-words').addEventListener('input', filter);
  get('before').addEventListener('click', () => { page -= 1; draw(); });
  get('after').addEventListener('click', () => { page += 1; draw(); });
  get('close').addEventListener('click', () => get('judgement').close());
  filter();
})();
"""
