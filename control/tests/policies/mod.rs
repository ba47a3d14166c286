//! What control makes of policies, and what it says of them.

use control::manifest::Problem;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use crate::{Duration, PATIENCE, Running, Seen, cluster::POLICIES, policy, shop};

/// Control does not know the last good version when it starts: only that there was one.
#[tokio::test(start_paused = true)]
async fn a_restart_lets_nobody_in_whom_a_policy_kept_out_that_is_refused_now() {
    let cluster = shop();
    cluster.serve("security.istio.io/v1", "authorizationpolicies");
    let refused = |name: &str, said: Option<(&str, &str)>| {
        let mut policy = policy("http");
        (policy["metadata"]["name"], policy["metadata"]["generation"]) = (name.into(), 2.into());
        if let Some((status, reason)) = said {
            policy["status"]["conditions"] = json!([{"type": "culvert.dev/Accepted", "status": status, "reason": reason, "observedGeneration": 1}]);
        }
        policy
    };
    cluster.put(POLICIES, refused("fresh", None));
    cluster.put(POLICIES, refused("never", Some(("False", "Refused"))));
    cluster.put(POLICIES, refused("again", Some(("False", "RefusedAfterAccepted"))));
    cluster.put(POLICIES, refused("was", Some(("True", "Accepted"))));
    let mut control = Running::start(&cluster).await;
    let names = |now: &Seen| now.policies.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    let now = control.now();
    assert_eq!(names(&now), ["shop/again", "shop/was"]);
    let told = |now: &Seen, name: &str| {
        let about = |problem: &&Problem| problem.object.as_ref().is_some_and(|key| &*key.name == name);
        now.outline.problems.iter().find(about).map(|problem| problem.reason.clone()).unwrap_or_default()
    };
    assert!(told(&now, "was").ends_with("whatever it may forbid is forbidden"), "{}", told(&now, "was"));
    assert!(told(&now, "fresh").ends_with("NOTHING of it holds"), "{}", told(&now, "fresh"));

    // What is wrong in another way still forbids; what is mended holds as it is; what is gone is gone.
    let mut otherwise = refused("was", None);
    otherwise["spec"] = json!({"action": "DENY", "ruels": []});
    cluster.put(POLICIES, otherwise);
    control.until("another mistake", |now| told(now, "was").contains("ruels")).await;
    assert_eq!(names(&control.now()), ["shop/again", "shop/was"]);
    let strictest = control.now().policies;
    let mut mended = policy("80");
    mended["metadata"]["name"] = "was".into();
    cluster.put(POLICIES, mended);
    control.until("mended", |now| told(now, "was").is_empty()).await;
    assert_ne!(control.now().policies, strictest);
    cluster.put(POLICIES, refused("was", None));
    control
        .until("refused again", |now| told(now, "was").contains("the last version that was accepted holds"))
        .await;
    cluster.delete(POLICIES, "shop", "again");
    control.until("gone", |now| names(now) == ["shop/was"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_made_of_a_policy_is_said_in_its_status() {
    let cluster = shop();
    cluster.serve("security.istio.io/v1", "authorizationpolicies");
    let written = |port: &str, generation: i64, status: Value| {
        let mut policy = policy(port);
        policy["metadata"]["generation"] = generation.into();
        policy["status"] = status;
        policy
    };
    let others = json!({"conditions": [{"type": "ZtunnelAccepted", "status": "True"}]});
    cluster.put(POLICIES, written("http", 1, others));
    let _control = Running::start(&cluster).await;
    let said = |generation: i64, status: &'static str| {
        let cluster = cluster.clone();
        async move {
            let is = || {
                let policy = cluster.get(POLICIES, "shop", "p")?;
                let conditions = policy["status"]["conditions"].as_array()?.clone();
                let ours = conditions.iter().find(|one| one["type"] == "culvert.dev/Accepted")?.clone();
                let fits = ours["status"] == status && ours["observedGeneration"] == generation;
                fits.then_some((conditions.len(), ours))
            };
            timeout(PATIENCE, async {
                loop {
                    if let Some(found) = is() {
                        return found;
                    }
                    sleep(Duration::from_millis(20)).await;
                }
            })
            .await
            .expect("the condition is written")
        }
    };
    let (conditions, ours) = said(1, "False").await;
    assert_eq!((conditions, &ours["reason"]), (2, &json!("Refused")), "the other one stays");
    let words = ours["message"].as_str().unwrap();
    assert!(words.starts_with("spec.rules[0].to[0].operation.ports[0]: "), "{words}");
    // Its writer mends it; whoever writes the spec may drop the status.
    cluster.put(POLICIES, written("80", 2, Value::Null));
    let (conditions, ours) = said(2, "True").await;
    assert_eq!((conditions, &ours["message"]), (1, &json!("")));
    // What is broken after it was accepted says so: whoever starts anew goes by it.
    cluster.put(POLICIES, written("http", 3, json!({"conditions": [ours]})));
    let (_, ours) = said(3, "False").await;
    assert_eq!(ours["reason"], "RefusedAfterAccepted");
    assert!(ours["message"].as_str().unwrap().contains("accepted holds"), "{ours}");
}
