use super::*;
use crate::front::fake::FakeBird;
use std::fs;

fn set<const N: usize>(addresses: [&str; N]) -> BTreeSet<IpAddr> {
    addresses.iter().map(|address| address.parse().unwrap()).collect()
}

fn open(fake: &FakeBird) -> Bird {
    Bird::open(&fake.file, &fake.socket, "boot-1").unwrap()
}

#[tokio::test]
async fn addresses_are_announced_and_withdrawn_one_by_one_and_all_at_once() {
    let fake = FakeBird::start();
    let mut bird = open(&fake);
    bird.announce("198.51.100.10".parse().unwrap()).await.unwrap();
    bird.announce("2001:db8::10".parse().unwrap()).await.unwrap();
    assert_eq!(*bird.announced(), set(["198.51.100.10", "2001:db8::10"]));
    bird.withdraw("198.51.100.10".parse().unwrap()).await.unwrap();
    assert_eq!(*bird.announced(), set(["2001:db8::10"]));
    bird.withdraw_all().await.unwrap();
    assert_eq!(*bird.announced(), set([]));
    assert!(!fs::read_to_string(&fake.file).unwrap().contains("route "));
}

#[tokio::test]
async fn announcing_the_same_again_only_looks() {
    let fake = FakeBird::start();
    let mut bird = open(&fake);
    let addresses = set(["198.51.100.10"]);
    bird.replace(&addresses).await.unwrap();
    assert!(fake.commands().contains(&"configure soft".to_owned()));
    bird.replace(&addresses).await.unwrap();
    assert!(fake.commands().iter().all(|command| command.starts_with("show ")));
    // A predecessor that was killed between writing and telling BIRD is made good for.
    let mut successor = open(&fake);
    assert_eq!(*successor.announced(), addresses);
    successor.replace(&addresses).await.unwrap();
    assert!(fake.commands().iter().all(|command| command.starts_with("show ")));
}

#[tokio::test]
async fn a_file_that_bird_has_not_read_yet_is_not_taken_for_announced() {
    let fake = FakeBird::start();
    let addresses = set(["198.51.100.10"]);
    IncludedFile::new(&fake.file, "boot-1").write(&addresses).await.unwrap();
    let mut bird = open(&fake);
    assert!(matches!(bird.check().await, Err(AnnounceError::Differs { .. })));
    assert_eq!(*bird.announced(), set([]));
    bird.replace(&addresses).await.unwrap();
    assert!(fake.commands().contains(&"configure soft".to_owned()));
}

#[tokio::test]
async fn after_a_boot_nothing_counts_as_announced_and_the_old_file_goes() {
    let fake = FakeBird::start();
    open(&fake).replace(&set(["198.51.100.10"])).await.unwrap();
    let mut bird = Bird::open(&fake.file, &fake.socket, "boot-2").unwrap();
    assert_eq!(*bird.announced(), set([]));
    bird.replace(&set([])).await.unwrap();
    assert!(!fs::read_to_string(&fake.file).unwrap().contains("route "));
    assert!(bird.check().await.is_ok());
}

#[tokio::test]
async fn a_configuration_that_takes_its_time_is_waited_for() {
    let fake = FakeBird::start();
    fake.conduct(|conduct| conduct.looks_behind = 3);
    let mut bird = open(&fake);
    bird.replace(&set(["198.51.100.10"])).await.unwrap();
    assert_eq!(*bird.announced(), set(["198.51.100.10"]));
    assert_eq!(fake.conduct(|conduct| conduct.looks_behind), 0);
}

#[tokio::test]
async fn a_refused_configuration_is_reported_in_birds_words_and_what_is_announced_stays() {
    let fake = FakeBird::start();
    let mut bird = open(&fake);
    bird.replace(&set(["198.51.100.10"])).await.unwrap();
    fake.conduct(|conduct| conduct.refusal = Some("8002 /etc/bird/bird.conf:7:1 syntax error"));
    let error = bird.replace(&set(["198.51.100.10", "198.51.100.11"])).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "{}: BIRD refuses `configure soft` with 8002 /etc/bird/bird.conf:7:1 syntax error; fix its \
             configuration there",
            fake.socket.display()
        )
    );
    assert_eq!(*bird.announced(), set(["198.51.100.10"]));
    fake.conduct(|conduct| conduct.refusal = None);
    bird.replace(&set(["198.51.100.10", "198.51.100.11"])).await.unwrap();
    assert_eq!(bird.announced().len(), 2);
}

#[tokio::test]
async fn withdrawing_all_gets_past_a_configuration_that_is_refused() {
    let fake = FakeBird::start();
    let mut bird = open(&fake);
    bird.replace(&set(["198.51.100.10"])).await.unwrap();
    fake.conduct(|conduct| conduct.refusal = Some("8002 /etc/bird/bird.conf:7:1 syntax error"));
    assert!(matches!(bird.withdraw_all().await, Err(AnnounceError::Refused { code: 8002, .. })));
    assert_eq!(*bird.announced(), set([]));
    fake.conduct(|conduct| conduct.refusal = None);
    bird.replace(&set(["198.51.100.10"])).await.unwrap();
    assert_eq!(*bird.announced(), set(["198.51.100.10"]));
}

#[tokio::test]
async fn a_file_that_is_not_included_is_reported_when_something_is_to_be_announced() {
    let fake = FakeBird::start();
    fake.conduct(|conduct| conduct.excludes = true);
    let mut bird = open(&fake);
    bird.replace(&set([])).await.unwrap();
    let error = bird.replace(&set(["198.51.100.10"])).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "{0}: BIRD's configuration does not include it; add `include \"{0}\";` and `birdc configure`",
            fake.file.display()
        )
    );
    assert_eq!(*bird.announced(), set([]));
}

#[tokio::test]
async fn a_bird_that_is_gone_announces_nothing_and_reads_the_file_when_it_is_back() {
    let mut fake = FakeBird::start();
    let mut bird = open(&fake);
    bird.replace(&set(["198.51.100.10"])).await.unwrap();
    fake.stop().await;
    let error = bird.check().await.unwrap_err();
    assert!(error.to_string().contains("bird.ctl: no BIRD answers"), "{error}");
    assert_eq!(*bird.announced(), set([]));
    assert!(matches!(bird.replace(&set(["2001:db8::10"])).await, Err(AnnounceError::Connect { .. })));
    fake.restart();
    fake.commands();
    bird.replace(&set(["2001:db8::10"])).await.unwrap();
    assert_eq!(*bird.announced(), set(["2001:db8::10"]));
    assert!(fake.commands().iter().all(|command| command.starts_with("show ")));
}

#[tokio::test]
async fn a_bird_that_hangs_is_given_up_in_time() {
    let fake = FakeBird::start();
    fake.conduct(|conduct| conduct.hangs = true);
    let mut bird = open(&fake);
    bird.limit = Duration::from_millis(50);
    let error = bird.replace(&set(["198.51.100.10"])).await.unwrap_err();
    assert!(error.to_string().contains("bird.ctl: BIRD has not done it within 50ms"), "{error}");
}

#[tokio::test]
async fn another_program_at_the_socket_is_told_from_bird() {
    let fake = FakeBird::start();
    for greeting in ["220 mail.example.net ESMTP", "0007 Shutdown ordered"] {
        fake.conduct(|conduct| conduct.greeting = Some(greeting));
        let error = open(&fake).replace(&set([])).await.unwrap_err();
        assert!(matches!(error, AnnounceError::NotBird { .. }), "{error}");
    }
}
