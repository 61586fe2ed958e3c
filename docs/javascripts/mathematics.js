// Renders formulas with KaTeX. Only pages with formulas load it.
const formulas = document.querySelectorAll(".arithmatex");
if (formulas.length) {
  const locate = (name) => new URL(`../katex/${name}`, document.currentScript.src).href;
  const render = () => {
    for (const formula of formulas) {
      const text = formula.textContent.trim();
      katex.render(text.slice(2, -2), formula, { displayMode: text.startsWith("\\["), throwOnError: false });
    }
  };
  document.head.append(
    Object.assign(document.createElement("link"), { rel: "stylesheet", href: locate("katex.min.css") }),
    Object.assign(document.createElement("script"), { src: locate("katex.min.js"), onload: render }),
  );
}
