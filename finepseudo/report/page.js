// Tables that sort by any column, and examples that play; without a script, both can be read as they stand.
const NUMBER = /^[+-]?(\d+\.?\d*|\.\d+)/;

// What a cell sorts by: the number that it starts with in a column of numbers, else its text; "-" is not known.
function keys(rows, column) {
  const texts = rows.map((row) => row.cells[column].textContent.trim());
  const numbers = texts.every((text) => text === "-" || text === "" || NUMBER.test(text));
  return texts.map((text) => (text === "-" || text === "" ? null : numbers ? parseFloat(text) : text));
}

function sort(table, column) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0], rows = [...body.rows];
  const down = heads[column].getAttribute("aria-sort") === "ascending" ? -1 : 1;
  const key = keys(rows, column);
  const order = rows.map((_, place) => place).sort((a, b) => {
    if (key[a] === null || key[b] === null) return (key[a] === null) - (key[b] === null); // what is not known stays last
    return down * (typeof key[a] === "number" ? key[a] - key[b] : key[a].localeCompare(key[b]));
  });
  body.append(...order.map((place) => rows[place]));
  heads.forEach((head, place) => head.setAttribute("aria-sort", place !== column ? "none" : down < 0 ? "descending" : "ascending"));
}

for (const table of document.querySelectorAll("table.sorts")) {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    button.addEventListener("click", () => sort(table, column));
    head.replaceChildren(button);
    head.setAttribute("aria-sort", "none");
  });
}

for (const example of document.querySelectorAll(".example")) {
  const find = (name) => example.querySelector(name), now = find(".now");
  const path = example.dataset.path.split(",").map(Number);
  const [mine, theirs] = ["mine", "theirs"].map((name) => ({ image: find(`img.${name}`), name: find(`canvas.${name}`).dataset.name }));
  const pair = new Pair(find("canvas.mine"), find("canvas.theirs"), find("input"), find(".where"), find("button"), (frame) => {
    now.setAttribute("d", `M${frame + 0.5} 0L${path[frame] + 0.5} 1`);
  });
  pair.show({ frames: path.length, seconds: Number(example.dataset.seconds), mine, theirs, path }, 0);
  find(".player").hidden = false;
}
