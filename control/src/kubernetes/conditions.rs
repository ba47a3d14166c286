//! Conditions as Kubernetes writes them down.

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

pub use crate::compile::Condition;

/// Words of a condition that are more than a person reads; the API server's own bound is 32 KiB.
const MOST_WORDS: usize = 2048;

/// What is to be said.
pub fn condition(
    kind: &'static str,
    status: bool,
    reason: &'static str,
    message: impl Into<String>,
) -> Condition {
    Condition { kind, status, reason, message: message.into() }
}

/// `wanted` among those that are there: others' stay, and the time is that of the last turn of the status.
pub fn among(before: &Value, wanted: &[Condition], generation: i64, now: Timestamp) -> Value {
    let mut all = before.as_array().cloned().unwrap_or_default();
    for one in wanted {
        let status = if one.status { "True" } else { "False" };
        let place = all.iter_mut().find(|there| there["type"] == one.kind);
        let since = place.as_ref().filter(|before| before["status"] == status);
        let since = since.and_then(|before| before["lastTransitionTime"].as_str().map(str::to_owned));
        let mut message = one.message.clone();
        if message.len() > MOST_WORDS {
            message.truncate(message.floor_char_boundary(MOST_WORDS));
            message.push('…');
        }
        let said = json!({
            "type": one.kind, "status": status, "reason": one.reason, "message": message,
            "observedGeneration": generation,
            "lastTransitionTime": since.unwrap_or_else(|| now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()),
        });
        match place {
            Some(place) => *place = said,
            None => all.push(said),
        }
    }
    Value::Array(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_turn_of_the_status_changes_the_time() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let others = json!([{"type": "Other", "status": "True"}]);
        let one = among(&others, &[condition("Accepted", true, "Accepted", "")], 1, at(1_000_000));
        assert_eq!((&one[0], &one[1]["lastTransitionTime"]), (&others[0], &json!("1970-01-12T13:46:40Z")));
        let again = [condition("Accepted", true, "Accepted", "")];
        assert_eq!(among(&one, &again, 1, at(2_000_000)), one, "nothing to write");
        let turned = [condition("Accepted", false, "Invalid", "ä".repeat(3000))];
        let two = among(&one, &turned, 2, at(2_000_000));
        assert_eq!(two[1]["lastTransitionTime"], "1970-01-24T03:33:20Z");
        assert!(two[1]["message"].as_str().unwrap().len() <= MOST_WORDS + '…'.len_utf8());
    }
}
