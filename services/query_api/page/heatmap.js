// Requests by weekday and hour: a table whose cells are coloured, and read out one by one with the arrow keys.

import { count, make } from "./dom.js";

const DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
const two = number => String(number).padStart(2, "0");

export function drawHeatmap(hours) {
  const most = Math.max(...hours.flat()), told = make("p", { class: "told", role: "status" });
  const head = make("tr", {}, make("td"));
  for (let hour = 0; hour < 24; hour++) head.append(make("th", { scope: "col" }, hour % 3 ? "" : two(hour)));
  const table = make("table", { class: "heatmap", "aria-label": "Requests by weekday and hour; arrow keys move" }, head);
  const cells = hours.map((counts, day) => {
    const row = make("tr", {}, make("th", { scope: "row" }, make("abbr", { title: DAYS[day] }, DAYS[day].slice(0, 3))));
    const made = counts.map((requests, hour) => {
      const text = `${DAYS[day]} ${two(hour)}:00 to ${two(hour)}:59: ${count(requests)}`;
      const cell = make("td", { tabIndex: -1, title: text, "aria-label": text });
      cell.style.setProperty("--share", `${most ? Math.round(100 * Math.sqrt(requests / most)) : 0}%`);
      cell.onfocus = cell.onpointerenter = () => { told.textContent = text; };
      return cell;
    });
    row.append(...made);
    table.append(row);
    return made;
  });
  const [day, hour] = busiest(hours, most);
  told.textContent = `Busiest: ${cells[day][hour].title}`;
  cells[day][hour].tabIndex = 0;
  let here = [day, hour];
  const moves = { ArrowUp: [6, 0], ArrowDown: [1, 0], ArrowLeft: [0, 23], ArrowRight: [0, 1] };
  table.onkeydown = event => {
    const move = moves[event.key];
    if (!move) return;
    event.preventDefault();
    cells[here[0]][here[1]].tabIndex = -1;
    here = [(here[0] + move[0]) % 7, (here[1] + move[1]) % 24];
    cells[here[0]][here[1]].tabIndex = 0;
    cells[here[0]][here[1]].focus();
  };
  return make("div", { class: "scrolled" }, table, told);
}

function busiest(hours, most) {
  const day = hours.findIndex(counts => counts.includes(most));
  return [day, hours[day].indexOf(most)];
}
