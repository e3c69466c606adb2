// The list of runs: while one of them runs, the table is fetched again and replaced.
import { redraw, whileSeen } from "/static/ui.js";

const list = document.getElementById("list");
if (list?.hasAttribute("data-moves")) {
  whileSeen(async () => {
    try {
      const answer = await fetch(location.href);
      if (!answer.ok) return;
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const fresh = page.getElementById("list");
      if (fresh) redraw(list, fresh.innerHTML);
    } catch {
      // The server is gone or busy: the next try tells.
    }
  }, 5);
}
