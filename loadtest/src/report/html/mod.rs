//! A page that needs nothing but itself: no network, no script, light and dark.
//!
//! It is made of a few kinds of blocks; who fills them knows what they mean. Everything that is text is escaped here.

mod measurement;

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::plot::{self, Plot, Size, escape};

pub(crate) use measurement::{latency_plot, latency_series, page as page_of};

/// A whole page.
#[derive(Debug, Clone, Default)]
pub(crate) struct Page {
    /// Its headline.
    pub(crate) title: String,
    /// A sentence or two below it.
    pub(crate) lead: String,
    /// What to know before believing it, a line each.
    pub(crate) notes: Vec<String>,
    /// What makes it less than whole, a line each.
    pub(crate) alarms: Vec<String>,
    /// The figures that most come for.
    pub(crate) tiles: Vec<Tile>,
    /// Everything else, from top to bottom.
    pub(crate) sections: Vec<Section>,
}

/// One large number.
#[derive(Debug, Clone)]
pub(crate) struct Tile {
    /// What it is of.
    pub(crate) label: String,
    /// The number.
    pub(crate) value: String,
    /// Its unit.
    pub(crate) unit: String,
    /// What to hold it against.
    pub(crate) told: String,
}

/// A part with a headline.
#[derive(Debug, Clone)]
pub(crate) struct Section {
    /// The headline.
    pub(crate) title: String,
    /// How to read it.
    pub(crate) note: String,
    /// What is there.
    pub(crate) body: Body,
}

/// What a section shows.
#[derive(Debug, Clone)]
pub(crate) enum Body {
    /// A drawing.
    Plot(Box<Plot>),
    /// A table.
    Table(Table),
    /// Folded away: lines as they are.
    Lines(Vec<String>),
}

/// Rows of cells.
#[derive(Debug, Clone)]
pub(crate) struct Table {
    /// The first is above the rows' titles.
    pub(crate) head: Vec<String>,
    /// Title and cells.
    pub(crate) rows: Vec<(String, Vec<Cell>)>,
    /// Which column of cells the page is about.
    pub(crate) subject: Option<usize>,
}

/// One cell.
#[derive(Debug, Clone)]
pub(crate) struct Cell {
    /// What counts.
    pub(crate) text: String,
    /// Small, below it.
    pub(crate) small: String,
}

impl Page {
    /// Writes it.
    ///
    /// # Errors
    /// The file can't be written.
    pub(crate) fn write(&self, file: &Path) -> Result<()> {
        fs::write(file, self.html()).with_context(|| format!("can't write {}", file.display()))
    }

    fn html(&self) -> String {
        let title = escape(&self.title);
        let lead = escape(&self.lead);
        let style = [plot::STYLE, include_str!("page.css")].concat();
        let alarms = self
            .alarms
            .iter()
            .map(|alarm| format!("<p class=\"alarm\">{}</p>\n", escape(alarm)));
        let alarms: String = alarms.collect();
        let notes = self.notes.iter().map(|note| escape(note));
        let notes = notes.collect::<Vec<_>>().join("<br>");
        let notes = format!("<p class=\"note\">{notes}</p>\n");
        let tiles = self.tiles();
        let sections: String = self.sections.iter().map(Section::html).collect();
        format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <title>{title}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n\
             <h1>{title}</h1>\n<p class=\"lead\">{lead}</p>\n{notes}{alarms}{tiles}{sections}</main>\n</body>\n</html>\n"
        )
    }

    fn tiles(&self) -> String {
        if self.tiles.is_empty() {
            return String::new();
        }
        let tiles: String = self.tiles.iter().map(Tile::html).collect();
        format!("<ul class=\"tiles\">\n{tiles}</ul>\n")
    }
}

impl Tile {
    fn html(&self) -> String {
        let [label, value, unit, told] =
            [&self.label, &self.value, &self.unit, &self.told].map(|text| escape(text));
        format!(
            "<li><span class=\"label\">{label}</span><span class=\"value\">{value}<span class=\"unit\">{unit}</span></span>\
             <span class=\"told\">{told}</span></li>\n"
        )
    }
}

impl Section {
    fn html(&self) -> String {
        let (title, note) = (escape(&self.title), escape(&self.note));
        if let Body::Lines(lines) = &self.body {
            let text = escape(&lines.join("\n"));
            return format!(
                "<details>\n<summary>{title}</summary>\n<p class=\"note\">{note}</p>\n<pre>{text}</pre>\n</details>\n"
            );
        }
        let body = match &self.body {
            Body::Plot(plot) => [plot.svg(Size::Wide), plot.svg(Size::Narrow)].concat(),
            Body::Table(table) => table.html(),
            Body::Lines(_) => String::new(),
        };
        format!("<section>\n<h2>{title}</h2>\n<p class=\"note\">{note}</p>\n{body}</section>\n")
    }
}

impl Table {
    fn html(&self) -> String {
        let mut html = String::from("<div class=\"scroll\">\n<table>\n<thead><tr>");
        for (index, head) in self.head.iter().enumerate() {
            let class = self.class(index.checked_sub(1));
            write!(html, "<th scope=\"col\"{class}>{}</th>", escape(head))
                .expect("a string takes everything");
        }
        html.push_str("</tr></thead>\n<tbody>\n");
        for (title, cells) in &self.rows {
            let cells: String = cells
                .iter()
                .enumerate()
                .map(|(index, cell)| cell.html(self.class(Some(index))))
                .collect();
            writeln!(
                html,
                "<tr><th scope=\"row\">{}</th>{cells}</tr>",
                escape(title)
            )
            .expect("a string takes everything");
        }
        html.push_str("</tbody>\n</table>\n</div>\n");
        html
    }

    fn class(&self, column: Option<usize>) -> &'static str {
        if column.is_some() && column == self.subject {
            " class=\"subject\""
        } else {
            ""
        }
    }
}

impl Cell {
    fn html(&self, class: &str) -> String {
        let [text, small] = [&self.text, &self.small].map(|text| escape(text));
        format!("<td{class}>{text}<small>{small}</small></td>")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nothing on the page comes from elsewhere or runs, and what was text stays text.
    #[test]
    fn a_page_needs_nothing_but_itself() {
        let page = Page {
            title: "a <b> & c".to_owned(),
            alarms: vec!["INCOMPLETE".to_owned()],
            sections: vec![
                Section {
                    title: "table".to_owned(),
                    note: String::new(),
                    body: Body::Table(Table {
                        head: vec!["row".to_owned(), "ours".to_owned()],
                        rows: vec![(
                            "first".to_owned(),
                            vec![Cell {
                                text: "1.07".to_owned(),
                                small: "(1–2)".to_owned(),
                            }],
                        )],
                        subject: Some(0),
                    }),
                },
                Section {
                    title: "lines".to_owned(),
                    note: String::new(),
                    body: Body::Lines(vec!["x < y".to_owned()]),
                },
            ],
            ..Page::default()
        };
        let html = page.html();
        for part in [
            "<h1>a &lt;b&gt; &amp; c</h1>",
            "<p class=\"alarm\">INCOMPLETE</p>",
            "<td class=\"subject\">1.07<small>(1–2)</small></td>",
            "<pre>x &lt; y</pre>",
        ] {
            assert!(html.contains(part), "{part} is not in {html}");
        }
        for foreign in ["<script", "src=", "href=", "@import", "url("] {
            assert!(!html.contains(foreign), "{foreign}");
        }
    }
}
