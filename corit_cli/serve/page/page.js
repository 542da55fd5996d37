// Files go to the service one by one; what it says of each is a report, from which the page takes its words and pictures.
// Nothing is kept but in this page: neither files, nor reports, nor the token.
const find = (id) => document.getElementById(id);
const AT_ONCE = 2; // files on their way: while one is looked at, the next is sent
const PATIENCE = 20; // times that a busy service is asked again
const cards = [];
const health = fetch("/health").then((answer) => answer.json()).catch(() => ({}));
let token = "";
let working = 0;

// --- asking the service ---

class Refusal extends Error {
  constructor(status, reason, wait) {
    super(reason);
    this.status = status;
    this.wait = wait;
  }
}

function send(address, files, tell) {
  const form = new FormData();
  for (const file of files) form.append("file", file, file.name || "pasted picture");
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", address);
    if (token) request.setRequestHeader("Authorization", "Bearer " + token);
    request.upload.addEventListener("progress", (event) => {
      const share = event.lengthComputable ? Math.floor((100 * event.loaded) / event.total) : 0;
      tell(share < 100 ? `Being sent, ${share}%` : "Being looked at");
    });
    request.addEventListener("load", () => {
      if (request.status === 200) return resolve(request.responseText);
      let reason = `the service answered with ${request.status}`;
      try {
        reason = JSON.parse(request.responseText).error || reason;
      } catch { /* an answer of something in between */ }
      reject(new Refusal(request.status, reason, Number(request.getResponseHeader("Retry-After"))));
    });
    request.addEventListener("error", () => reject(new Refusal(0, "the service cannot be reached, or did not take the file", 0)));
    request.send(form);
  });
}

/** The report on files; waits for a service that is busy, and for a token. */
async function report(files, heatmap, tell) {
  const options = new URLSearchParams();
  if (!heatmap) options.set("heatmap", "false");
  for (const name of ["strict", "stability"]) if (find(name).checked) options.set(name, "true");
  for (let tries = 0; ; tries++) {
    if (!token && (await health).token) {
      tell("Waiting for a token");
      await askForToken();
    }
    try {
      return await send(`/v1/report?${options}`, files, tell);
    } catch (error) {
      if (error.status === 401) {
        tell("Waiting for another token");
        await askForToken();
      } else if (error.status === 503 && error.wait && tries < PATIENCE) {
        tell(`The service is busy: trying again in ${error.wait} s`);
        await new Promise((resolve) => setTimeout(resolve, 1000 * error.wait));
      } else {
        throw error;
      }
    }
  }
}

let asking = null;
function askForToken() {
  asking ??= new Promise((resolve) => {
    const form = find("token-form");
    find("token-note").textContent = token ? "That was not the right one." : "";
    form.hidden = false;
    find("token").value = "";
    find("token").focus();
    form.onsubmit = (event) => {
      event.preventDefault();
      token = find("token").value.trim();
      form.hidden = true;
      find("files").focus();
      asking = null;
      resolve();
    };
  });
  return asking;
}

/** At a click the work begins; until it is done the button does nothing, but keeps the focus. */
function onClick(button, work) {
  button.addEventListener("click", async () => {
    if (button.hasAttribute("aria-disabled")) return;
    button.setAttribute("aria-disabled", "true");
    try {
      await work();
    } finally {
      button.removeAttribute("aria-disabled");
    }
  });
}

// --- a file on the page ---

class Card {
  constructor(file) {
    this.file = file;
    this.state = "waiting";
    this.item = find("card").content.cloneNode(true).firstElementChild;
    this.name = this.find("bdi").textContent = file.name || "pasted picture";
    onClick(this.find(".save"), () => this.save());
    onClick(this.find(".heat"), () => this.map());
    this.tell("Waiting");
    find("results").append(this.item);
  }

  find(what) {
    return this.item.querySelector(what);
  }

  tell(text) {
    this.find(".doing").textContent = text;
  }

  /** Ask, and show what came; whether that went well. */
  async ask(heatmap) {
    try {
      this.show(await report([this.file], heatmap, (text) => this.tell(text)));
      this.whole = heatmap;
      return true;
    } catch (error) {
      this.tell(`No answer: ${error.message}.`);
      this.said = `${this.name}: no answer, ${error.message}`;
      return false;
    }
  }

  async look() {
    this.state = "asked";
    this.state = (await this.ask(false)) ? "judged" : "failed";
  }

  show(text) {
    this.text = text;
    // Without its head: the report's own styles, which this page has, would not be let in here.
    const told = new DOMParser().parseFromString(text.slice(text.indexOf("<body>")), "text/html");
    if (!document.querySelector(".shapes")) document.body.prepend(told.querySelector(".shapes"));
    const section = told.querySelector("section.file");
    section.querySelector("h2").remove();
    const first = [...section.children].findIndex((part) => part.matches(".meaning, h3"));
    const parts = [...section.children];
    const short = first < 0 ? parts : parts.slice(0, first);
    this.find("h2").after(...short, this.find(".doing"));
    for (const old of this.item.querySelectorAll(".found > :not(h2, .doing)")) if (!short.includes(old)) old.remove();
    this.find(".more").replaceChildren(this.find(".more > summary"), ...(first < 0 ? [] : parts.slice(first)));
    this.find(".more").hidden = first < 0;
    this.tell("");
    slide(this.item);
    const picture = this.find(".more .photograph img");
    if (picture) Object.assign(this.find(".mini"), { src: picture.src, hidden: false });
    this.find(".actions").hidden = false;
    if (!this.find(".more .single") || this.find(".timeline")) this.hideHeat();
    const called = this.find(".called").textContent.trim();
    const probability = this.find(".probability")?.textContent.trim();
    this.said = [this.name, [called, probability].filter(Boolean).join(", ")].join(": ");
  }

  /** Hide the heatmap's button; a focus on it moves to the summary. */
  hideHeat() {
    const focused = document.activeElement === this.find(".heat");
    this.find(".heat").hidden = true;
    if (focused) this.find(".more > summary").focus();
  }

  /** Ask for the report with a heatmap, and tell how that goes; whether it went well. */
  async draw() {
    say(`${this.name}: the heatmap is being drawn.`);
    const done = await this.ask(true);
    if (!done) say(`${this.said}.`);
    return done;
  }

  /** Have the heatmap drawn, and open it. */
  async map() {
    if (!(await this.draw())) return;
    this.find(".more").open = true;
    const slider = this.find(".pair input");
    say(slider ? "The heatmap is there." : "There is no heatmap of this file.");
    this.hideHeat();
    if (!slider) return;
    slider.focus({ preventScroll: true });
    this.find(".pair").scrollIntoView({ block: "center" });
  }

  /** Save the report, with all that belongs into it. */
  async save() {
    const drawn = this.whole || this.find(".heat").hidden;
    if (!drawn && !(await this.draw())) return;
    download(this.text, this.name);
  }
}

function download(text, name) {
  const address = URL.createObjectURL(new Blob([text], { type: "text/html" }));
  const link = document.createElement("a");
  link.href = address;
  link.download = `corit-${name.replace(/[^\p{L}\p{N}.-]+/gu, "_").slice(0, 80)}.html`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 60000);
  say("The report is saved.");
}

// --- all of them ---

function say(text) {
  find("status").textContent = text;
}

function add(files) {
  if (!files.length) return;
  for (const file of files) cards.push(new Card(file));
  showProgress();
  go();
}

function go() {
  const next = cards.find((card) => card.state === "waiting");
  if (!next || working >= AT_ONCE) return;
  working++;
  next.look().finally(() => {
    working--;
    showProgress(next);
    go();
  });
  go();
}

function showProgress(latest) {
  const done = cards.filter((card) => card.state === "judged" || card.state === "failed").length;
  Object.assign(find("progress"), { max: cards.length, value: done, hidden: done === cards.length });
  find("save-all").hidden = cards.filter((card) => card.state === "judged").length < 2 || done < cards.length;
  const count = `${done} of ${cards.length} looked at.`;
  say(latest?.said ? `${latest.said}. ${count}` : count);
}

find("files").addEventListener("change", (event) => {
  add([...event.target.files]);
  event.target.value = "";
});
document.addEventListener("paste", (event) => add([...(event.clipboardData?.files ?? [])]));
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    document.documentElement.classList.toggle("over", kind === "dragover");
    if (kind === "drop") add([...(event.dataTransfer?.files ?? [])]);
  });
}
onClick(find("save-all"), async () => {
  say("One report on all files is being made.");
  try {
    const judged = cards.filter((card) => card.state === "judged");
    download(await report(judged.map((card) => card.file), true, say), `${judged.length} files`);
  } catch (error) {
    say(`No report: ${error.message}.`);
  }
});
health.then((told) => {
  if (told.videos !== false) return;
  for (const words of document.querySelectorAll(".videos")) words.remove();
  find("files").accept = find("files").accept.replace("video/*,", "");
});
