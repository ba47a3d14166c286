//! The ratios as bars, in an SVG that needs nothing but itself.

use std::fmt::Write as _;

use super::{Goal, Results};
use crate::{facts::Facts, plan::Mode};

const WIDTH: f64 = 960.0;
const LEFT: f64 = 120.0;
const BAR: f64 = 13.0;
const GAP: f64 = 14.0;
const TOP: f64 = 96.0;

/// A colour for each mode that is not a baseline.
fn colour(mode: Mode) -> &'static str {
    match mode {
        Mode::NoMesh | Mode::NoMeshSameNode => "#999999",
        Mode::Passthrough => "#8fb8de",
        Mode::SameNode => "#3f7cac",
        Mode::Spliced => "#2a9d8f",
        Mode::TwoNodes => "#0b3954",
        Mode::PeerTwoNodes => "#d98324",
    }
}

/// The bars of one bench.
struct Group {
    name: String,
    bars: Vec<Bar>,
}

/// A speed relative to no mesh, and the one to reach.
struct Bar {
    mode: Mode,
    speed: f64,
    goal: Option<f64>,
}

/// A bar is the speed relative to no mesh: a rate's ratio, and for a latency the ratio's inverse.
pub(super) fn render(results: &Results, facts: &Facts) -> String {
    let modes: Vec<Mode> = results.modes().into_iter().filter(|mode| mode.baseline() != *mode).collect();
    let groups: Vec<Group> = results
        .benches()
        .into_iter()
        .map(|bench| {
            let metric = bench.headline();
            let speed = |ratio: f64| if metric.more_is_better() { ratio } else { 1.0 / ratio };
            let bars = modes
                .iter()
                .filter_map(|mode| {
                    let ratio = results.ratio(bench, *mode, metric)?;
                    // A goal has another base than the bar may have.
                    let rebased = results.goal_ratio(bench, *mode).map(|to_base| ratio / to_base);
                    let goal = Goal::of(bench, *mode).zip(rebased).map(|(goal, rebased)| match goal {
                        Goal::AtLeast(goal) | Goal::AtMost(goal) => speed(goal * rebased),
                    });
                    Some(Bar { mode: *mode, speed: speed(ratio), goal })
                })
                .collect();
            Group { name: bench.to_string(), bars }
        })
        .collect();
    draw(&modes, &groups, facts)
}

fn draw(modes: &[Mode], groups: &[Group], facts: &Facts) -> String {
    let longest = groups.iter().flat_map(|group| &group.bars).map(|bar| bar.speed).fold(1.0, f64::max);
    let scale = (WIDTH - LEFT - 70.0) / longest;
    let rows: usize = groups.iter().map(|group| group.bars.len()).sum();
    let height = TOP + rows as f64 * BAR + groups.len() as f64 * GAP + 30.0;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
         height=\"{height}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"16\" y=\"26\" font-size=\"17\">Culvert: speed relative to no mesh (longer is better)</text>\n"
    );
    for (at, line) in facts.lines().iter().enumerate() {
        let _ = writeln!(
            out,
            "<text x=\"16\" y=\"{}\" fill=\"#555\">{}</text>",
            44.0 + at as f64 * 15.0,
            escape(line)
        );
    }
    for (at, mode) in modes.iter().enumerate() {
        let x = 16.0 + at as f64 * 130.0;
        let _ = writeln!(
            out,
            "<rect x=\"{x}\" y=\"70\" width=\"11\" height=\"11\" fill=\"{}\"/><text x=\"{}\" y=\"80\">{mode}</text>",
            colour(*mode),
            x + 16.0
        );
    }
    let bottom = height - 22.0;
    for tick in 0..=((longest * 5.0) as usize) {
        let (value, x) = (tick as f64 / 5.0, LEFT + tick as f64 / 5.0 * scale);
        let stroke = if tick == 5 { "#555" } else { "#ddd" };
        let _ = writeln!(
            out,
            "<line x1=\"{x:.1}\" y1=\"{}\" x2=\"{x:.1}\" y2=\"{bottom}\" stroke=\"{stroke}\"/>\
             <text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\" fill=\"#555\">{value:.1}×</text>",
            TOP - 6.0,
            height - 8.0
        );
    }
    let mut y = TOP;
    for Group { name, bars } in groups {
        let middle = y + bars.len() as f64 * BAR / 2.0 + 4.0;
        let _ = writeln!(out, "<text x=\"{}\" y=\"{middle}\" text-anchor=\"end\">{name}</text>", LEFT - 8.0);
        for Bar { mode, speed, goal } in bars {
            let _ = writeln!(
                out,
                "<rect x=\"{LEFT}\" y=\"{y}\" width=\"{:.1}\" height=\"{}\" fill=\"{}\"/>\
                 <text x=\"{:.1}\" y=\"{}\" fill=\"#333\">{speed:.2}</text>",
                speed * scale,
                BAR - 2.0,
                colour(*mode),
                LEFT + speed * scale + 5.0,
                y + BAR - 3.5
            );
            if let Some(goal) = goal {
                let x = LEFT + goal * scale;
                let _ = writeln!(
                    out,
                    "<line x1=\"{x:.1}\" y1=\"{}\" x2=\"{x:.1}\" y2=\"{}\" stroke=\"#c1121f\" stroke-width=\"2\"/>",
                    y - 1.0,
                    y + BAR - 1.0
                );
            }
            y += BAR;
        }
        y += GAP;
    }
    out.push_str("<text x=\"944\" y=\"80\" text-anchor=\"end\" fill=\"#c1121f\">| to reach</text>\n</svg>\n");
    out
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_measured_mode_is_a_bar_and_the_text_is_escaped() {
        let facts = Facts {
            processor: "A<B & C".into(),
            ..Facts::gather(std::path::Path::new("/"), Some("reno"), 3, 4)
        };
        let svg = render(&super::super::tests::sample(), &facts);
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
        assert!(svg.contains("A&lt;B &amp; C"));
        assert_eq!(svg.matches("fill=\"#0b3954\"").count(), 1 + 9);
    }
}
