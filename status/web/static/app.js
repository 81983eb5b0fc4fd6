// The page can be read without this file. It moves live values, and asks before it acts.
"use strict";

document.documentElement.classList.add("js");

// morph makes the element `old` look like `fresh`, and touches only what differs: focus, selection and open details stay.
function morph(old, fresh) {
  if (old.nodeType !== fresh.nodeType || old.nodeName !== fresh.nodeName) {
    old.replaceWith(fresh.cloneNode(true));
    return;
  }
  if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.nodeValue !== fresh.nodeValue) old.nodeValue = fresh.nodeValue;
    return;
  }
  for (const a of [...old.attributes]) {
    const opened = a.name === "open" && old.nodeName === "DETAILS";
    if (!fresh.hasAttribute(a.name) && !opened) old.removeAttribute(a.name);
  }
  for (const a of fresh.attributes) {
    if (old.getAttribute(a.name) !== a.value) old.setAttribute(a.name, a.value);
  }
  // Rows with a key stay themselves when others come and go.
  const key = (n) => n.dataset && n.dataset.key;
  const kept = new Map([...old.childNodes].filter(key).map((n) => [key(n), n]));
  const next = [...fresh.childNodes];
  next.forEach((n, i) => {
    const at = old.childNodes[i] || null;
    const same = key(n) ? kept.get(key(n)) : at;
    if (!same) {
      old.insertBefore(n.cloneNode(true), at);
      return;
    }
    if (same !== at) old.insertBefore(same, at);
    morph(same, n);
  });
  while (old.childNodes.length > next.length) old.lastChild.remove();
}

function listen() {
  const pulse = document.getElementById("pulse");
  const events = new EventSource(document.body.dataset.live);
  events.onmessage = (e) => {
    pulse.textContent = "";
    const { id, html } = JSON.parse(e.data);
    const fresh = new DOMParser().parseFromString(html, "text/html").getElementById(id);
    const old = document.getElementById(id);
    if (fresh && old) morph(old, fresh);
  };
  events.onopen = () => (pulse.textContent = "");
  events.onerror = () => (pulse.textContent = document.body.dataset.lost);
}

// sure asks in a dialog, and resolves to whether the answer is yes.
function sure(question) {
  if (!question) return Promise.resolve(true);
  const dialog = document.getElementById("confirm");
  dialog.querySelector("#question").textContent = question;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((done) => dialog.addEventListener("close", () => done(dialog.returnValue === "yes"), { once: true }));
}

let hush;
function say(text) {
  document.getElementById("toast").textContent = text;
  clearTimeout(hush);
  hush = setTimeout(() => say(""), 6000);
}

async function act(button) {
  const { do: path, ask, name, connector, id } = button.dataset;
  if (!(await sure(ask))) return;
  const body = name ? { name } : connector === undefined ? {} : { connector, ids: id ? [id] : [] };
  button.disabled = true;
  try {
    const answer = await fetch(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
    const result = await answer.json();
    const failed = document.getElementById("toast").dataset.failed;
    say(answer.ok ? "✓ " + button.textContent : [failed + ": " + result.error, ...(result.details || [])].join("\n"));
  } catch {
    say(document.body.dataset.lost);
  }
  button.disabled = false;
}

document.addEventListener("click", (e) => {
  const button = e.target.closest("button");
  if (!button) return;
  if (button.dataset.do) act(button);
  if (button.closest("#confirm")) button.closest("#confirm").close(button.value);
});

// On a narrow screen the navigation is wider than the page.
const here = document.querySelector("header nav [aria-current]");
if (here) here.parentElement.scrollLeft = here.offsetLeft - 40;

listen();
