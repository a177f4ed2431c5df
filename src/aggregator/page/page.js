// The cluster at a glance. Everything that comes from the cluster is put in as text, never as markup, and where it shares
// a line with something else in an element that keeps its writing direction to itself.
'use strict';

const STATES = ['Critical', 'Warning', 'Unknown', 'Normal'];
const LETTER = { Critical: 'C', Warning: 'W', Unknown: '?', Normal: '·' };
const BADGE = { critical: 'Critical', warning: 'Warning', unknown: 'Unknown', info: 'info' };
const CURE = { reload: ', by a reload', reboot: ', by a reboot', processRestart: ', as a process was started anew' };
const SCOPE = { few: 'a few', subset: 'a large part', most: 'most', all: 'all' };
/** A report is fetched at least this often, as some of it changes with time alone; in milliseconds. */
const EVERY = 30_000;
/** Without an answer for so long the page says that it is not live; in milliseconds. */
const LATE = 45_000;
/** An answer has to come within this time; in milliseconds. */
const PATIENCE = 15_000;

const $ = (id) => document.getElementById(id);

function make(tag, text, className) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (className) element.className = className;
  return element;
}

const clock = (at) => at.replace('T', ' ').replace(/(\.\d+)?Z$/, 'Z');
const count = (number, word) => `${number} ${word}${number === 1 ? '' : 's'}`;

function span(from, to) {
  const seconds = Math.max(0, (Date.parse(to) - Date.parse(from)) / 1000);
  const [unit, size] = [['d', 86400], ['h', 3600], ['min', 60]].find(([, size]) => seconds >= size) ?? ['s', 1];
  return `${Math.floor(seconds / size)} ${unit}`;
}

const ago = (at) => span(at, report.generatedAt);
const since = (at) => (at ? `since ${clock(at)} (${ago(at)})` : '');

// --- What is fetched -----------------------------------------------------------------------------------------------

let report = null;
let fetching = false;
let again = false;
let answered = 0;

async function get(path) {
  const response = await fetch(path, { signal: AbortSignal.timeout(PATIENCE), cache: 'no-store' });
  if (!response.ok && response.status !== 404) throw new Error(`${path}: status ${response.status}`);
  return response.json();
}

async function refresh() {
  if (fetching) {
    again = true;
    return;
  }
  fetching = true;
  try {
    report = await get('api/v1/report');
    answered = Date.now();
    show();
    await showWorker();
  } catch (error) {
    console.warn(error);
  }
  fetching = false;
  freshness();
  if (again) {
    again = false;
    refresh();
  }
}

function freshness() {
  const late = Date.now() - answered > LATE;
  const at = report ? `as of ${clock(report.generatedAt)}` : 'nothing was fetched yet';
  $('fresh').textContent = late ? `Not live: no answer from the aggregator; ${at}. Trying again.` : `Live, ${at}.`;
  $('fresh').classList.toggle('late', late);
}

let revision = null;

function listen() {
  const events = new EventSource('api/v1/live');
  events.onmessage = (event) => {
    if (event.data !== revision) {
      revision = event.data;
      refresh();
    }
  };
  // A stream that ends is opened again by the browser; one that is refused is not.
  events.onerror = () => {
    if (events.readyState === EventSource.CLOSED) setTimeout(() => { refresh(); listen(); }, 10_000);
  };
}

// --- The cluster ---------------------------------------------------------------------------------------------------

function show() {
  $('summary').textContent = report.summary;
  const unseen = report.view.complete ? '' : ` ${report.view.why ?? ''} ${since(report.view.since)}`;
  document.title = `${worst()} NodeVitals`;
  showFindings(unseen);
  showGrid();
}

function worst() {
  const state = STATES.find((state) => report.workers[state.toLowerCase()] > 0) ?? 'Normal';
  return state === 'Normal' ? '' : `(${report.workers[state.toLowerCase()]} ${state})`;
}

function showFindings(unseen) {
  const items = [];
  if (unseen) items.push(finding({ severity: 'warning', code: 'CannotSeeCluster', detail: unseen }));
  for (const one of report.view.cannotLook ?? []) items.push(finding(cannotLook(one)));
  for (const one of report.cluster ?? []) items.push(finding(one, count(one.nodes, 'worker')));
  for (const one of report.findings) {
    const shared = one.shared ? `; what they share: ${one.shared}` : '';
    const where = `on ${one.nodes} of ${count(report.workers.total, 'worker')} (${SCOPE[one.scope] ?? one.scope})${shared}`;
    items.push(finding(one, where));
  }
  if (report.clusterMore) items.push(make('li', `And ${report.clusterMore} more about the cluster, less bad.`));
  $('wrong').hidden = items.length === 0;
  $('findings').replaceChildren(...items);
}

/** What could not be looked at, so that silence about it is no all-clear. */
function cannotLook({ what, why, since, codes }) {
  const unknown = codes.length ? `Unknown for that: ${codes.join(', ')}` : '';
  return { severity: 'unknown', code: 'Cannot look', subject: what.join(', '), since, detail: why, more: unknown };
}

/** A finding: how bad, its code, where, what, and what to do next. */
function finding(one, where) {
  const item = make('li');
  item.append(make('span', BADGE[one.severity] ?? one.severity, `badge ${BADGE[one.severity] ?? 'info'}`));
  item.append(make('strong', one.code));
  const when = one.noticed ? since(one.since).replace('since', 'noticed') : since(one.since);
  const rest = [where, one.subject, when, one.causedBy && `caused by ${one.causedBy}`];
  for (const text of rest.filter(Boolean)) item.append(item.querySelector('bdi') ? ' · ' : ' ', make('bdi', text));
  for (const text of [one.detail, one.more].filter(Boolean)) item.append(make('p', text));
  (one.suspects ?? []).forEach((it, at) => item.append(make('p', `${at ? 'Or' : 'Suspect'}: ${it.sentence}`, 'suspect')));
  if (one.before?.length) item.append(make('p', 'Changed before:'), changes(one));
  if (one.next) item.append(make('p', `Next: ${one.next}`, 'next'));
  return item;
}

/** What changed before a failure, the nearest first. */
function changes(one) {
  const list = make('ul', undefined, 'before');
  for (const { at, what, by } of one.before) {
    const when = Date.parse(at) > Date.parse(one.since) ? 'just after' : `${span(at, one.since)} before`;
    const item = make('li');
    item.append(make('time', clock(at)), ' ', make('bdi', by ? `${what} by ${by}` : what), `, ${when}`);
    list.append(item);
  }
  return list;
}

// --- The grid ------------------------------------------------------------------------------------------------------

/** Cells by the worker's name: they are changed in place, so that focus and scrolling stay. */
const cells = new Map();
let layout = '';

function wanted() {
  const words = $('find').value.toLowerCase().split(/\s+/).filter(Boolean);
  const states = new Set(STATES.filter((state) => $(`show-${state}`).checked));
  return report.nodes.filter((node) => {
    const text = [node.name, node.zone, node.pool, node.reason, ...(node.findings ?? []).map((one) => one.code)];
    const all = text.filter(Boolean).join(' ').toLowerCase();
    return states.has(node.state) && words.every((word) => all.includes(word));
  });
}

function groups(nodes) {
  const keys = $('by').value.split(' ').filter(Boolean);
  const found = new Map();
  for (const node of nodes) {
    const title = keys.map((key) => `${key} ${node[key] ?? 'unnamed'}`).join(', ') || 'all workers';
    if (!found.has(title)) found.set(title, []);
    found.get(title).push(node);
  }
  const byName = (a, b) => a.localeCompare(b, undefined, { numeric: true });
  for (const members of found.values()) members.sort((a, b) => byName(a.name, b.name));
  return [...found].sort(([a], [b]) => byName(a, b));
}

function showGrid() {
  const nodes = wanted();
  const all = groups(nodes);
  const next = JSON.stringify(all.map(([title, members]) => [title, members.map((node) => node.name)]));
  const names = new Set(report.nodes.map((node) => node.name));
  for (const name of cells.keys()) if (!names.has(name)) cells.delete(name);
  for (const node of nodes) paint(node);
  if (next !== layout) {
    layout = next;
    lay(all);
  }
  for (const [title, members] of all) {
    const heading = headings.get(title);
    if (heading) heading.textContent = `${title}: ${tally(members)}`;
  }
  $('shown').textContent = nodes.length === report.nodes.length
    ? `${count(nodes.length, 'worker')}. Arrow keys move between them, Enter opens one.`
    : `${nodes.length} of ${count(report.nodes.length, 'worker')} shown.`;
}

function tally(members) {
  const numbers = STATES.map((state) => [members.filter((node) => node.state === state).length, state]);
  return numbers.filter(([number]) => number).map(([number, state]) => `${number} ${state}`).join(', ');
}

const headings = new Map();

function lay(all) {
  const focused = document.activeElement?.dataset?.name;
  headings.clear();
  const sections = all.map(([title, members], index) => {
    const section = make('section');
    const heading = make('h3');
    heading.id = `group-${index}`;
    headings.set(title, heading);
    const list = make('ul', undefined, 'cells');
    list.setAttribute('aria-labelledby', heading.id);
    for (const node of members) {
      const item = make('li');
      item.append(cells.get(node.name).button);
      list.append(item);
    }
    section.append(heading, list);
    return section;
  });
  $('grid').replaceChildren(...sections);
  rove(cells.get(focused)?.button ?? document.querySelector('.cell'), Boolean(focused));
}

/** The cell of a worker, made or brought up to date. */
function paint(node) {
  let cell = cells.get(node.name);
  if (!cell) {
    const button = make('button', undefined, 'cell');
    button.type = 'button';
    button.dataset.name = node.name;
    button.tabIndex = -1;
    cell = { button, shown: '' };
    cells.set(node.name, cell);
  }
  const notes = [node.settling && 'settling', node.cordoned && 'cordoned', node.deleting && 'being deleted'].filter(Boolean);
  const label = [node.name, node.state, node.reason, ...notes].filter(Boolean).join(', ');
  if (cell.shown === label) return;
  cell.shown = label;
  cell.button.textContent = LETTER[node.state] ?? '?';
  cell.button.className = ['cell', node.state, node.settling && 'settling', node.cordoned && 'cordoned'].filter(Boolean).join(' ');
  cell.button.title = label;
  cell.button.setAttribute('aria-label', label);
}

/** One cell of all can be reached with the Tab key; arrows lead from it to the others. */
function rove(button, focus) {
  if (!button) return;
  for (const other of document.querySelectorAll('.cell[tabindex="0"]')) other.tabIndex = -1;
  button.tabIndex = 0;
  if (focus) button.focus();
}

$('grid').addEventListener('keydown', (event) => {
  const all = [...document.querySelectorAll('.cell')];
  const at = all.indexOf(document.activeElement);
  if (at < 0) return;
  const to = {
    ArrowRight: () => all[at + 1], ArrowLeft: () => all[at - 1], Home: () => all[0], End: () => all.at(-1),
    ArrowDown: () => below(all, at, 1), ArrowUp: () => below(all, at, -1),
  }[event.key]?.();
  if (!to) return;
  event.preventDefault();
  rove(to, true);
});

/** The nearest cell in the next row in this direction. */
function below(all, at, step) {
  const from = all[at].getBoundingClientRect();
  let row = null;
  let best = null;
  for (let index = at + step; all[index]; index += step) {
    const box = all[index].getBoundingClientRect();
    if (Math.abs(box.top - from.top) < 2) continue;
    row ??= box.top;
    if (Math.abs(box.top - row) > 2) break;
    if (!best || Math.abs(box.left - from.left) < Math.abs(best.left - from.left)) best = { left: box.left, cell: all[index] };
  }
  return best?.cell;
}

$('grid').addEventListener('click', (event) => {
  const name = event.target.closest('.cell')?.dataset.name;
  if (name) location.hash = `node=${encodeURIComponent(name)}`;
});

// --- One worker ----------------------------------------------------------------------------------------------------

function chosen() {
  const [key, name] = location.hash.slice(1).split('=');
  try {
    return key === 'node' && name ? decodeURIComponent(name) : null;
  } catch {
    return null;
  }
}

async function showWorker() {
  const name = chosen();
  for (const [other, cell] of cells) {
    if (other === name) cell.button.setAttribute('aria-current', 'true');
    else cell.button.removeAttribute('aria-current');
  }
  $('worker').hidden = !name;
  if (!name) return;
  const one = await get(`api/v1/report?node=${encodeURIComponent(name)}`);
  // Another one may have been chosen meanwhile.
  if (name !== chosen()) return;
  const node = one.nodes?.[0] ?? { name, state: 'Unknown', detail: one.message };
  $('worker-title').textContent = `${node.name}: ${node.state}`;
  const line = [since(node.since), node.zone && `zone ${node.zone}`, node.pool && `pool ${node.pool}`,
    node.cordoned && 'cordoned', node.settling && 'settling', node.agent && `agent ${node.agent.state}`,
    node.kubeletStarted && `kubelet ${since(node.kubeletStarted)}`,
    node.runtime && `${node.runtime} ${since(node.runtimeStarted)}`.trimEnd()];
  $('worker-line').textContent = line.filter(Boolean).join(' · ');
  $('worker-problem').textContent = [node.reason, node.detail].filter(Boolean).join(': ');
  $('worker-next').textContent = node.next ? `Next: ${node.next}` : '';
  const concerns = (one.cluster ?? []).map((found) => finding(found, 'of the cluster'));
  $('worker-findings').replaceChildren(...(node.findings ?? []).map((found) => finding(found)), ...concerns);
  if (node.more) $('worker-findings').append(make('li', `And ${node.more} more that did not fit on the Node: the agent’s own page has them.`));
  if (!$('worker-findings').children.length) $('worker-findings').append(make('li', 'None.'));
  $('timeline').replaceChildren(...timeline(node).map(([at, text]) => {
    const item = make('li');
    item.append(make('time', clock(at)), make('bdi', text));
    return item;
  }));
  $('conditions').tBodies[0].replaceChildren(...(node.conditions ?? []).map((condition) => {
    const row = make('tr');
    const cells = [condition.type, condition.status, condition.reason, condition.lastTransitionTime ?? ''];
    row.append(...cells.map((text, index) => make('td', index === 3 && text ? clock(text) : text)));
    return row;
  }));
}

/** What is known to have happened to a worker, latest first. */
function timeline(node) {
  const happened = [];
  const add = (at, text) => at && happened.push([at, text]);
  add(node.created, 'joined the cluster');
  add(node.since, `${node.state} since then`);
  add(node.ready?.since, `kubelet: Ready is ${node.ready?.status} (${node.ready?.reason})`);
  add(node.agent?.since, `agent ${node.agent?.state}`);
  add(node.rebooted, 'booted');
  add(node.kubeletStarted, 'kubelet started');
  add(node.runtimeStarted, `${node.runtime ?? 'container runtime'} started`);
  add(node.updated, 'got other software');
  for (const one of node.findings ?? []) add(one.since, `${one.code} ${one.subject ?? ''} first seen`);
  for (const { code, since, cleared, cure } of node.episodes ?? []) {
    add(since, `${code} first seen`);
    add(cleared, `${code} over, after ${span(since, cleared)}${CURE[cure] ?? ''}`);
  }
  for (const one of node.conditions ?? []) add(one.lastTransitionTime, `${one.type} became ${one.status} (${one.reason})`);
  return happened.sort(([a], [b]) => Date.parse(b) - Date.parse(a));
}

async function open() {
  if (report) await showWorker().catch(console.warn);
  if (chosen()) $('worker-title').focus();
}

function close() {
  const name = chosen();
  history.pushState(null, '', location.pathname + location.search);
  showWorker();
  rove(cells.get(name)?.button, true);
}

// --- Begin ---------------------------------------------------------------------------------------------------------

for (const state of STATES) {
  const label = make('label');
  const box = make('input');
  Object.assign(box, { type: 'checkbox', id: `show-${state}`, checked: true });
  label.append(box, ` ${state}`);
  $('states').append(label);
}
$('filter').addEventListener('input', () => report && showGrid());
$('filter').addEventListener('submit', (event) => event.preventDefault());
$('close').addEventListener('click', close);
addEventListener('keydown', (event) => {
  if (event.key === 'Escape' && chosen()) close();
});
addEventListener('hashchange', open);
setInterval(refresh, EVERY);
setInterval(freshness, 5000);
refresh().then(() => chosen() && $('worker-title').focus());
listen();
