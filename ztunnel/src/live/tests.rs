//! A worker's connections before snapshots that change.

use mesh::{Action, Clause, Match, Policy, Rule, Scope, StringMatch};
use runtime::{
    logging::AccessLog,
    metrics::Metrics,
    record::{Direction, Options, Records},
};

use super::*;

fn policy(name: &str, action: Action, principal: &str) -> Policy {
    let principals = vec![StringMatch::Exact(principal.into())];
    let clause = Clause { matches: vec![Match { principals, ..Match::default() }] };
    Policy {
        key: PolicyKey { namespace: "shop".into(), name: name.into() },
        scope: Scope::Namespace,
        action,
        dry_run: false,
        rules: vec![Rule { clauses: vec![clause] }],
    }
}

fn complete() -> Snapshot {
    let mut edit = Snapshot::default().edit();
    let mut web = Workload::named("c//Pod/shop/web", "shop", "web");
    web.addresses = vec!["10.1.0.5".parse().unwrap()];
    edit.put_workload(web);
    edit.mark_addresses_complete();
    edit.mark_policies_complete();
    edit.finish()
}

pub(crate) struct World {
    pub(crate) live: Rc<Live>,
    count: Arc<AtomicUsize>,
    records: Records,
    pub(crate) snapshot: Snapshot,
}

impl World {
    pub(crate) fn new() -> Self {
        let count = Arc::default();
        let records = Records::new(&Metrics::new("test"), AccessLog::none(), Options::default());
        Self { live: Live::new(Arc::clone(&count)), count, records, snapshot: complete() }
    }

    /// A connection of `who` to the pod `web`, as it is when it has been admitted.
    pub(crate) fn admitted(&self, who: &str) -> Carried {
        let to: SocketAddr = "10.1.0.5:80".parse().unwrap();
        let record = self.records.begin(Direction::Inbound, "10.1.0.9:4000".parse().unwrap(), to);
        let carried = self.live.enter(Pod::for_tests("shop", "web"), Path::InboundHbone, record);
        let destination = self.snapshot.workload("c//Pod/shop/web").unwrap().clone();
        let source = Identity::new("cluster.local", "shop", who);
        let admitted = Admitted::attempt(Some(source), "10.1.0.9".parse().unwrap(), destination, to);
        assert!(matches!(admitted.judge(&self.snapshot).verdict, Verdict::Allow(_)));
        assert!(carried.admitted.set(admitted).is_ok());
        carried
    }

    /// Changes the mesh and judges again; how many connections that ended.
    async fn change(&mut self, change: impl FnOnce(&mut mesh::Editor)) -> u64 {
        let before = self.snapshot.policy_generation();
        let mut edit = self.snapshot.edit();
        change(&mut edit);
        self.snapshot = edit.finish();
        let changed = self.snapshot.policy_generation() != before;
        self.live.rejudge(&self.snapshot, changed).await.ended
    }

    /// Judges again when nothing has changed.
    async fn later(&self, time: Duration) -> Rejudged {
        tokio::time::sleep(time).await;
        self.live.rejudge(&self.snapshot, false).await
    }

    /// The pod `web` names a policy from now on, whose key is returned.
    pub(crate) fn name_a_policy(&mut self, name: &str) -> PolicyKey {
        let (web, key) = self.web_naming(name);
        let mut edit = self.snapshot.edit();
        edit.put_workload(web);
        self.snapshot = edit.finish();
        key
    }

    fn web_naming(&self, name: &str) -> (Workload, PolicyKey) {
        let key = PolicyKey { namespace: "shop".into(), name: name.into() };
        let mut web = Workload::clone(self.snapshot.workload("c//Pod/shop/web").unwrap());
        web.authorization_policies = vec![key.clone()];
        (web, key)
    }

    /// What somebody new is told.
    fn newcomer(&self) -> Verdict {
        let destination = self.snapshot.workload("c//Pod/shop/web").unwrap().clone();
        let (from, to) = ("10.1.0.9".parse().unwrap(), "10.1.0.5:80".parse().unwrap());
        let alice = Identity::new("cluster.local", "shop", "alice");
        Admitted::attempt(Some(alice), from, destination, to).judge(&self.snapshot).verdict
    }
}

#[tokio::test]
async fn a_new_policy_ends_what_it_denies_and_nothing_else() {
    let mut world = World::new();
    let (bad, good) = (world.admitted("mallory"), world.admitted("alice"));
    let deny = policy("no-mallory", Action::Deny, "cluster.local/ns/shop/sa/mallory");
    assert_eq!(world.change(|edit| edit.put_policy(deny.clone())).await, 1);
    bad.stopped().await;
    assert_eq!(bad.reason(), Some(Stop::Refused(Refusal::Denied(deny.key.clone()))));
    assert_eq!(good.reason(), None);
}

#[tokio::test]
async fn a_change_that_no_policy_and_no_destination_has_part_in_judges_nobody() {
    let world = World::new();
    let carried = world.admitted("alice");
    // Were it judged, it would be refused: judge it by a state in which nothing is allowed.
    let allow = policy("only-bob", Action::Allow, "cluster.local/ns/shop/sa/bob");
    let mut edit = world.snapshot.edit();
    edit.put_policy(allow);
    let refusing = edit.finish();
    assert_eq!(world.live.rejudge(&refusing, false).await.ended, 0);
    assert_eq!(carried.reason(), None);
    assert_eq!(world.live.rejudge(&refusing, true).await.ended, 1);
}

#[tokio::test]
async fn a_policy_that_comes_to_select_the_destination_is_asked() {
    let mut world = World::new();
    let carried = world.admitted("alice");
    let mut deny = policy("by-label", Action::Deny, "cluster.local/ns/shop/sa/alice");
    deny.scope = Scope::WorkloadSelector;
    assert_eq!(world.change(|edit| edit.put_policy(deny.clone())).await, 0, "it selects nobody yet");
    let (web, _) = world.web_naming("by-label");
    assert_eq!(world.change(|edit| edit.put_workload(web)).await, 1);
    assert!(carried.reason().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_comes_late_finds_the_live_alive_and_the_new_refused() {
    let mut world = World::new();
    let carried = world.admitted("alice");
    let (web, key) = world.web_naming("late");
    assert_eq!(world.change(|edit| edit.put_workload(web)).await, 0);
    assert_eq!(world.newcomer(), Verdict::Refuse(Refusal::PolicyMissing(key.clone())));
    assert_eq!(world.later(MISSING_GRACE - Duration::from_millis(1)).await.ended, 0);
    let mut allow = policy("late", Action::Allow, "cluster.local/ns/shop/sa/alice");
    allow.scope = Scope::WorkloadSelector;
    assert_eq!(world.change(|edit| edit.put_policy(allow)).await, 0);
    assert_eq!(world.later(2 * MISSING_GRACE).await, Rejudged::default(), "nobody waits any more");
    assert_eq!(carried.reason(), None);
    // Missing once more: the time begins anew.
    assert_eq!(world.change(|edit| edit.remove_policy(&key)).await, 0);
    assert_eq!(world.later(MISSING_GRACE).await.ended, 1);
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_never_comes_ends_the_live_when_their_time_is_over() {
    let mut world = World::new();
    let carried = world.admitted("alice");
    let (web, key) = world.web_naming("late");
    let begun = Instant::now();
    assert_eq!(world.change(|edit| edit.put_workload(web)).await, 0);
    // What else changes in the meantime gives no more time.
    tokio::time::sleep(MISSING_GRACE / 2).await;
    assert_eq!(world.change(|edit| edit.put_policy(policy("other", Action::Deny, "x"))).await, 0);
    let waiting = world.later(Duration::ZERO).await;
    assert_eq!(waiting, Rejudged { ended: 0, again: Some(begun + MISSING_GRACE) });
    tokio::time::sleep_until(begun + MISSING_GRACE).await;
    assert_eq!(world.later(Duration::ZERO).await, Rejudged { ended: 1, again: None });
    assert_eq!(carried.reason(), Some(Stop::Refused(Refusal::PolicyMissing(key))));
}

#[tokio::test(start_paused = true)]
async fn there_is_no_grace_before_a_deny_nor_for_a_policy_that_was_not_understood() {
    let mut world = World::new();
    let (bad, good) = (world.admitted("mallory"), world.admitted("alice"));
    let (web, key) = world.web_naming("late");
    let deny = policy("no-mallory", Action::Deny, "cluster.local/ns/shop/sa/mallory");
    let ended = world.change(|edit| {
        edit.put_workload(web);
        edit.put_policy(deny);
    });
    assert_eq!(ended.await, 1);
    assert!(bad.reason().is_some() && good.reason().is_none());
    assert_eq!(world.change(|edit| edit.mark_policy_unusable(&key)).await, 1);
    assert_eq!(good.reason(), Some(Stop::Refused(Refusal::PolicyMissing(key))));
}

#[tokio::test]
async fn more_than_a_chunk_is_judged_whole_and_leavers_do_not_disturb() {
    let mut world = World::new();
    let mut all: Vec<Carried> = (0..3 * CHUNK + 7).map(|_| world.admitted("mallory")).collect();
    assert_eq!(world.count.load(Ordering::Relaxed), all.len());
    let mut index = 0;
    all.retain(|_| {
        index += 1;
        index % 3 != 0
    });
    let deny = policy("no-mallory", Action::Deny, "cluster.local/ns/shop/sa/mallory");
    assert_eq!(world.change(|edit| edit.put_policy(deny)).await, all.len() as u64);
    assert!(all.iter().all(|carried| carried.reason().is_some()));
    drop(all);
    assert_eq!(world.count.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn the_first_reason_to_end_holds() {
    let world = World::new();
    let carried = world.admitted("alice");
    world.live.stop(&Stop::PodGone, |_| true);
    world.live.stop(&Stop::Ends, |_| true);
    carried.stopped().await;
    carried.stopped().await;
    assert_eq!(carried.reason(), Some(Stop::PodGone));
}

#[tokio::test]
async fn a_pod_that_comes_back_under_its_uid_is_not_ended_with_the_one_before() {
    let world = World::new();
    let (before, after) = (world.admitted("alice"), world.admitted("alice"));
    assert_eq!(before.pod.uid, after.pod.uid);
    world.live.stop(&Stop::PodGone, |connection| connection.is_of(&before.pod));
    assert_eq!((before.reason(), after.reason()), (Some(Stop::PodGone), None));
}
