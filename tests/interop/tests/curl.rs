//! curl as a foreign HBONE client of our ztunnel.

use std::time::Duration;

use bed::eventually;
use interop::{
    apps::serve_page,
    ensure_curl,
    scene::{Scene, root},
};

/// What the web server of this test says.
const PAGE: &str = "hello from behind the tunnel";

#[test]
fn curl_gets_a_page_through_our_server_and_is_refused_where_it_should_be() {
    let curl = ensure_curl(&root()).unwrap();
    let scene = Scene::start().unwrap();
    serve_page(&scene.server, 8080, PAGE).unwrap();
    let own = scene.credentials("outside", "curl").unwrap();
    let get = |credentials, url: String| {
        let (program, arguments, libraries) =
            curl.through(&format!("https://{}", scene.door()), credentials, &url);
        let mut job = scene.outside.job(program).args(arguments);
        if let Some(libraries) = libraries {
            job = job.env("LD_LIBRARY_PATH", libraries);
        }
        job.run().unwrap()
    };
    let page = get(&own, format!("http://{}/", scene.server.at(8080)));
    assert!(page.success(), "{page:?}");
    assert_eq!(page.stdout, format!("{PAGE}\nstatus=200"));

    // curl does not tell the status of a refused CONNECT; our log does.
    let another = get(&own, format!("http://{}/", scene.other.at(8080)));
    assert!(!another.success() && another.stdout == "\nstatus=000", "{another:?}");
    let reason = format!("{} is not an address of this pod", scene.other.v4());
    let told = || Ok(scene.mesh[1].ztunnel.log().contains(&reason).then_some(()));
    eventually(Duration::from_secs(5), "ztunnel's log to tell why", told).unwrap();

    let rogue = scene.rogue("outside", "curl").unwrap();
    let refused = get(&rogue, format!("http://{}/", scene.server.at(8080)));
    assert!(!refused.success() && !refused.stdout.contains(PAGE), "{refused:?}");
}
