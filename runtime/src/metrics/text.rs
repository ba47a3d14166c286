//! OpenMetrics text → Prometheus text format 0.0.4.
//!
//! The two differ little, yet a plain reader (`promtool check metrics` among them) takes a counter
//! family `x` with the sample `x_total` for two unrelated metrics. So a family is given the name
//! its samples have, and types that only OpenMetrics knows become their nearest of the old ones.

use std::fmt::Write;

/// Rewrites the metadata lines of `open`; samples stay as they are.
pub(super) fn to_prometheus(open: &str) -> String {
    let mut text = String::with_capacity(open.len());
    // The help precedes the type, which decides the family's name: it waits here.
    let mut help: Option<(&str, &str)> = None;
    for line in open.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ');
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let Some((name, kind)) = rest.split_once(' ') else { continue };
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                other => ("", other),
            };
            if let Some((_, help)) = help.take().filter(|(named, _)| *named == name) {
                let _ = writeln!(text, "# HELP {name}{suffix} {help}");
            }
            let _ = writeln!(text, "# TYPE {name}{suffix} {kind}");
        } else if !line.starts_with('#') {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::to_prometheus;

    #[test]
    fn families_take_the_name_of_their_samples() {
        let open = "# HELP a_b Help.\n# TYPE a_b counter\na_b_total{x=\"# TYPE\"} 1\n\
                    # HELP c Bytes.\n# TYPE c gauge\n# UNIT c bytes\nc 2\n# EOF\n";
        let plain = "# HELP a_b_total Help.\n# TYPE a_b_total counter\na_b_total{x=\"# TYPE\"} 1\n\
                     # HELP c Bytes.\n# TYPE c gauge\nc 2\n";
        assert_eq!(to_prometheus(open), plain);
    }
}
