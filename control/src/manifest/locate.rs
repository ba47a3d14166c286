//! Finds the line of a field in a YAML document by its path, for problems found after parsing.

/// The 0-based line, counted from the document's first, where the field `path`
/// (`spec.rules[0].from`) stands. Block style is followed exactly; inside flow style (`{a: [b]}`) the
/// line of the nearest enclosing block field is given.
pub(super) fn line_of(text: &str, path: &str) -> usize {
    let lines: Vec<&str> = text.lines().collect();
    let mut at = 0;
    let mut found = 0;
    // The column that the keys of the current mapping share is that of the first one met.
    let mut deeper_than: Option<usize> = None;
    for step in steps(path) {
        let next = match step {
            Step::Key(key) => find_key(&lines, at, deeper_than, key),
            Step::Index(index) => find_item(&lines, at, deeper_than, index),
        };
        let Some((line, column)) = next else { break };
        found = line;
        deeper_than = Some(column);
        // An item's first key may stand on the line of its dash.
        at = if matches!(step, Step::Index(_)) { line } else { line + 1 };
    }
    found
}

#[derive(Clone, Copy)]
enum Step<'a> {
    Key(&'a str),
    Index(usize),
}

fn steps(path: &str) -> impl Iterator<Item = Step<'_>> {
    path.split(['.', '[']).filter(|part| !part.is_empty()).map(|part| match part.strip_suffix(']') {
        Some(index) => index.parse().map_or(Step::Key(part), Step::Index),
        None => Step::Key(part),
    })
}

/// Column of the first character that is neither space nor the dash of a list item.
fn key_column(line: &str) -> usize {
    line.len() - line.trim_start_matches([' ', '-']).len()
}

fn dash_column(line: &str) -> Option<usize> {
    let trimmed = line.trim_start();
    (trimmed == "-" || trimmed.starts_with("- ")).then(|| line.len() - trimmed.len())
}

fn is_content(line: &str) -> bool {
    let trimmed = line.trim();
    !trimmed.is_empty() && !trimmed.starts_with('#')
}

fn find_key(lines: &[&str], from: usize, deeper_than: Option<usize>, key: &str) -> Option<(usize, usize)> {
    let mut column = None;
    for (number, line) in lines.iter().enumerate().skip(from) {
        if !is_content(line) {
            continue;
        }
        let here = key_column(line);
        let first_of_item = number == from && dash_column(line) == deeper_than;
        if deeper_than.is_some_and(|parent| here <= parent) && !first_of_item {
            return None;
        }
        let column = *column.get_or_insert(here);
        let rest = &line[here..];
        let named = [key.to_owned(), format!("\"{key}\""), format!("'{key}'")].iter().any(|name| {
            rest.strip_prefix(name.as_str()).is_some_and(|rest| rest.trim_start().starts_with(':'))
        });
        if here == column && named {
            return Some((number, here));
        }
    }
    None
}

fn find_item(
    lines: &[&str],
    from: usize,
    deeper_than: Option<usize>,
    index: usize,
) -> Option<(usize, usize)> {
    let mut column = None;
    let mut seen = 0;
    for (number, line) in lines.iter().enumerate().skip(from) {
        if !is_content(line) {
            continue;
        }
        // YAML lets the dashes of a list stand in the column of its key.
        let Some(dash) = dash_column(line) else {
            if deeper_than.is_some_and(|parent| key_column(line) <= parent) {
                return None;
            }
            continue;
        };
        if deeper_than.is_some_and(|parent| dash < parent) {
            return None;
        }
        if dash == *column.get_or_insert(dash) {
            if seen == index {
                return Some((number, dash));
            }
            seen += 1;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::line_of;

    const TEXT: &str = "\
apiVersion: v1
metadata:
  name: a
spec:
  selector:
    matchLabels: {app: web}
  rules:
  - from:
    - source:
        principals: [\"x\"]
    to:
    - operation:
        ports: [\"80\"]
  - from:
    - source:
        namespaces: [a]
    - source:
        ipBlocks:
        - 10.0.0.0/8
        - nonsense
";

    #[test]
    fn finds_fields_in_block_style() {
        for (path, line) in [
            ("", 0),
            ("spec", 3),
            ("spec.selector.matchLabels", 5),
            ("spec.selector.matchLabels.app", 5),
            ("spec.rules[0]", 7),
            ("spec.rules[0].from[0].source.principals[0]", 9),
            ("spec.rules[0].to[0].operation.ports", 12),
            ("spec.rules[1].from[1].source.ipBlocks[1]", 19),
            ("spec.missing", 3),
        ] {
            assert_eq!(line_of(TEXT, path), line, "{path}");
        }
    }
}
