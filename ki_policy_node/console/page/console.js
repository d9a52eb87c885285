// The operator's page. Everything from the robot is written as text, never as HTML.
'use strict';

const BEAT_MS = 200;      // a required operator is missed after 700 ms
const SILENT_MS = 1500;   // without a state for so long, what the page shows is old
const DRAW_MS = 90;       // and not at every frame of the screen: who has no graphics card would do little else
const PAST_S = 5, AHEAD_S = 3;
const $ = (id) => document.getElementById(id);
let socket = null, about = null, state = null, chunk = null, heardAt = 0, offset = 0, shownAlert = '';
const history = new Map(); // column -> [[time, value], ...]
const drawings = new Map();

// Connection.

function connect() {
  socket = new WebSocket(`${location.protocol === 'https:' ? 'wss' : 'ws'}://${location.host}/ws`);
  socket.binaryType = 'arraybuffer';
  socket.onmessage = (event) => {
    if (event.data instanceof ArrayBuffer) picture(event.data);
    else take(JSON.parse(event.data));
  };
  socket.onclose = () => { socket = null; showLink(); setTimeout(connect, 1000); };
}

function send(words) {
  if (!socket || socket.readyState !== WebSocket.OPEN) { answer(false, 'Not sent: the connection is lost.'); return false; }
  socket.send(JSON.stringify(words));
  return true;
}

function take(message) {
  if (message.type === 'about') { about = message; build(); }
  else if (message.type === 'state') { state = message; heardAt = performance.now(); remember(); show(); }
  else if (message.type === 'chunk') { chunk = message; }
  else if (message.type === 'answer') {
    answer(message.good, message.text);
    if (message.to === 'claim') $('insist').hidden = message.good;
  }
}

// The page says that it lives, and answers the newest time that it was told: what was held back on the way counts for nothing.
setInterval(() => {
  const mine = state && state.control.mine;
  if (mine && socket && socket.readyState === WebSocket.OPEN && socket.bufferedAmount === 0) {
    socket.send(JSON.stringify({do: 'beat', sent: state.sent}));
  }
  showLink();
}, BEAT_MS);

function showLink() {
  const late = performance.now() - heardAt > SILENT_MS;
  const text = !socket ? 'connection lost' : late || !state ? 'nothing heard' : `connected, ${state.watching} watching`;
  put($('link'), text, late || !socket || !state ? 'bad' : 'good');
  if (late && heardAt) alertOf('The connection to the console is lost: what is shown is old.');
}

// The stop.

function stop() {
  put($('answer'), 'Stopping', 'warn');
  const sent = socket && socket.readyState === WebSocket.OPEN;
  if (sent) socket.send(JSON.stringify({do: 'estop'}));
  // Twice, on two connections: one of them may be dead without knowing.
  fetch('/estop', {method: 'POST'}).then((reply) => { if (!reply.ok) throw new Error(reply.statusText); })
    .catch(() => { if (!sent) alertOf('STOP WAS NOT SENT: the connection is lost. Use the emergency stop of the robot.'); });
}

$('estop').addEventListener('click', stop);
window.addEventListener('keydown', (event) => {
  if (event.code !== 'Space' || event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.target instanceof HTMLInputElement || event.target instanceof HTMLTextAreaElement) return;
  event.preventDefault();
  event.stopPropagation();
  if (!event.repeat) stop();
}, true);
window.addEventListener('keyup', (event) => {  // a button with the focus must not be pressed by it
  if (event.code === 'Space' && !(event.target instanceof HTMLInputElement)) event.preventDefault();
}, true);
window.addEventListener('keydown', (event) => {
  if (event.key === 'Escape' && event.target instanceof HTMLInputElement) event.target.blur();
});

// The other buttons.

for (const button of document.querySelectorAll('[data-do]')) {
  button.addEventListener('click', () => {
    const words = {do: button.dataset.do};
    if (words.do === 'record') words.task = $('instruction').value || (state && state.instructions.at(-1)) || '';
    if (words.do === 'end_recording') { words.outcome = button.dataset.outcome; words.note = $('note').value; }
    if (send(words) && words.do === 'end_recording') $('note').value = '';
  });
}
const claim = (insist) => send({do: 'claim', name: $('name').value, insist});
$('claim').addEventListener('submit', (event) => { event.preventDefault(); claim(false); });
$('insist').addEventListener('click', () => claim(true));
$('instruct').addEventListener('submit', (event) => {
  event.preventDefault();
  send({do: 'instruct', text: $('instruction').value});
});
$('record').addEventListener('submit', (event) => event.preventDefault());

// What is shown.

function put(element, text, kind = '') {
  if (element.textContent !== text) element.textContent = text;
  if (element.className !== kind) element.className = kind;
}

function make(tag, text = '', kind = '') {
  const made = document.createElement(tag);
  if (text) made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

function answer(good, text) { put($('answer'), text, good ? 'good' : 'bad'); }

function alertOf(text) {
  if (text === shownAlert) return;
  shownAlert = text;
  $('alert').hidden = !text;
  $('alert').textContent = text;
}

function build() {
  document.title = `${about.robot} console`;
  $('robot').textContent = about.robot;
  $('cameras').replaceChildren(...about.cameras.map((name) => {
    const figure = make('figure'), canvas = make('canvas');
    canvas.setAttribute('role', 'img');
    canvas.setAttribute('aria-label', `camera ${name}`);
    canvas.width = 320; canvas.height = 240;
    figure.append(canvas, make('figcaption', name));
    return figure;
  }));
  drawings.clear();
  history.clear();
  $('joints').replaceChildren(...about.columns.map((column) => {
    const box = make('div', '', 'joint'), line = make('p'), value = make('span', '-'), canvas = make('canvas');
    canvas.setAttribute('role', 'img');
    line.append(make('span', column.name), value);
    box.append(line, canvas);
    drawings.set(column.name, {column, value, canvas});
    return box;
  }));
}

async function picture(buffer) {
  const place = new Uint8Array(buffer, 0, 1)[0];
  const canvas = $('cameras').children[place]?.querySelector('canvas');
  if (!canvas) return;
  try {
    const bitmap = await createImageBitmap(new Blob([new Uint8Array(buffer, 1)], {type: 'image/jpeg'}));
    if (canvas.width !== bitmap.width || canvas.height !== bitmap.height) {
      canvas.width = bitmap.width; canvas.height = bitmap.height;
    }
    canvas.getContext('2d').drawImage(bitmap, 0, 0);
    bitmap.close();
    canvas.dataset.frames = String(Number(canvas.dataset.frames || 0) + 1);
  } catch { /* a picture that does not decode: the next one may */ }
}

function remember() {
  const now = performance.now() / 1000;
  for (const [name, value] of Object.entries(state.measured)) {
    const kept = history.get(name) || [];
    kept.push([now, value]);
    while (kept.length && kept[0][0] < now - PAST_S) kept.shift();
    history.set(name, kept);
  }
}

function show() {
  const {policy, executor, control} = state;
  const kinds = {run: 'good', hold: 'warn', fault: 'bad', silent: 'bad', running: 'good', holding: 'warn'};
  put($('executor'), executor.reason ? `${executor.state}: ${executor.reason}` : executor.state, kinds[executor.state] || '');
  const why = [policy.hold, policy.message].filter(Boolean).join('. ');
  put($('policy'), why ? `${policy.state}: ${why}` : policy.state, kinds[policy.state] || '');
  const selected = executor.heard && executor.selected === 'human' ? ', a human is to' : '';
  put($('driver'), executor.heard ? `${executor.source}${executor.driver ? ` (${executor.driver})` : ''}${selected}` +
    (executor.teleop ? '; teleoperation is alive' : '') : '-');
  put($('subtask'), state.subtask.replace(/<loc\d+>/g, '').trim() || '-');
  const required = executor.operator_required ? '; the robot needs a live operator' : '';
  put($('control'), (control.mine ? `you (${control.name})` : control.name || 'nobody') + required);
  $('estop').setAttribute('aria-pressed', String(Boolean(executor.estop)));
  const bad = [executor.state === 'fault' ? `Robot in fault: ${executor.reason}` : '',
    policy.state === 'fault' ? `Policy in fault: ${policy.message}` : '',
    executor.heard ? executor.clocks : executor.reason].filter(Boolean).join(' ');
  alertOf(bad);
  for (const button of document.querySelectorAll('[data-do]')) {
    const free = ['stop', 'disable', 'dry_run'].includes(button.dataset.do);
    button.setAttribute('aria-disabled', String(!free && !control.mine));
  }
  const episode = state.episode;
  put($('episode'), episode.recording ? `recording ${episode.index}: ${episode.task}` : episode.ended || 'not recording',
    episode.recording || episode.ended ? 'bad' : '');
  fill($('said'), state.instructions, (option, text) => { option.value = text; }, 'option');
  rows($('streams'), policy.streams.map((each) => [each.name, each.state, `${each.age} of ${each.max_age}`,
    each.rate.toFixed(1), String(each.rejected)]), (cells) => cells[1] === 'ok' ? '' : 'bad');
  const latency = {...policy.latency, ...(executor.heard ? {"policy's clock ahead": executor.clock_ahead} : {})};
  rows($('latency'), Object.entries(latency).map(([part, ms]) => [part, ms.toFixed(1)]), () => '');
  put($('chunks'), policy.heard ? `${policy.published} chunks, ${policy.dropped} dropped, ${policy.id} on ${policy.backend}` : '', 'small');
  fill($('events'), [...state.events].reverse(), (item, event) => {
    const text = `${new Date(event.at * 1000).toLocaleTimeString()} ${event.text}`;
    put(item, text, event.severity === 'fault' ? 'bad' : event.severity === 'rejected' ? 'warn' : '');
  }, 'li');
}

function fill(parent, items, set, tag) {
  while (parent.children.length > items.length) parent.lastChild.remove();
  while (parent.children.length < items.length) parent.append(make(tag));
  items.forEach((item, place) => set(parent.children[place], item));
}

function rows(body, lines, kind) {
  fill(body, lines, (row, cells) => {
    fill(row, cells, (cell, text) => put(cell, text), 'td');
    row.className = kind(cells);
  }, 'tr');
}

// Every joint: what was measured, and over it the chunk, between the limits.

function draw() {
  setTimeout(() => requestAnimationFrame(draw), DRAW_MS);
  if (!state || document.hidden) return;
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const colours = {measured: colour('--accent'), planned: colour('--warn'), limit: colour('--bad'), line: colour('--line')};
  for (const [name, drawing] of drawings) drawJoint(name, drawing, colours);
}

function drawJoint(name, {column, value, canvas}, colours) {
  const past = history.get(name) || [], now = performance.now() / 1000;
  const ahead = ahead_of(name, now);
  const latest = past.length ? past.at(-1)[1] : null;
  put(value, latest === null ? '-' : `${latest.toFixed(3)} ${column.unit}`);
  canvas.setAttribute('aria-label', latest === null ? `${name}: not measured` :
    `${name}: ${latest.toFixed(2)} ${column.unit}, limits ${column.lower ?? 'none'} to ${column.upper ?? 'none'}`);
  const width = canvas.clientWidth, height = canvas.clientHeight;
  if (canvas.width !== width) canvas.width = width;
  if (canvas.height !== height) canvas.height = height;
  const values = [...past, ...ahead].map((each) => each[1]);
  const low = column.lower ?? Math.min(-0.1, ...values), high = column.upper ?? Math.max(0.1, ...values);
  const span = high - low || 1, margin = 0.06 * span;
  const x = (time) => (time - now + PAST_S) / (PAST_S + AHEAD_S) * width;
  const y = (at) => height - (at - low + margin) / (span + 2 * margin) * height;
  const g = canvas.getContext('2d');
  g.clearRect(0, 0, width, height);
  const line = (points, stroke, thick, dash = []) => {
    if (points.length < 2) return;
    g.strokeStyle = stroke; g.lineWidth = thick; g.setLineDash(dash);
    g.beginPath();
    points.forEach(([at, of], place) => place ? g.lineTo(x(at), y(of)) : g.moveTo(x(at), y(of)));
    g.stroke();
  };
  const whole = [now - PAST_S, now + AHEAD_S];
  for (const limit of [column.lower, column.upper]) {
    if (limit !== null) line(whole.map((at) => [at, limit]), colours.limit, 1, [3, 3]);
  }
  line([[now, low - margin], [now, high + margin]], colours.line, 1);
  line(past, colours.measured, 1.5);
  line(ahead, colours.planned, 2, chunk && chunk.dry ? [4, 3] : []);
}

// Stamps are the robot's clock; when a chunk comes is about when it may begin.
function ahead_of(name, now) {
  if (!chunk) return [];
  const place = chunk.names.indexOf(name);
  if (place < 0) return [];
  chunk.begin ??= now;
  return chunk.rows.map((row, step) => [chunk.begin + step * chunk.step, row[place]]).filter(([at]) => at < now + AHEAD_S && at > now - PAST_S);
}

connect();
requestAnimationFrame(draw);
