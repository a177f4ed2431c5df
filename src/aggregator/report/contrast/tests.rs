//! Causes that were planted are found, at every size at which they can be; where there is none, none is found.

use super::*;
use crate::aggregator::restarts::Restarts;
use crate::aggregator::testing::at;
use crate::aggregator::traits::Traits;

/// Numbers that only look random, the same in each run (xorshift).
struct Chance(u64);

impl Chance {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % end as u64).expect("small")
    }
}

/// Workers as a real cluster has them: zones with a subnet each, pools that are of one machine type, and a mix of kernels
/// and kubelets; some are new.
fn workers(count: usize, chance: &mut Chance, values: &mut Values) -> Vec<Row> {
    let worker = |_| {
        let (zone, pool, kernel, kubelet) = (chance.below(3), chance.below(5), chance.below(2), chance.below(3));
        let said = [
            format!("p{pool}"),
            format!("z{zone}"),
            format!("10.0.{zone}.0/24"),
            format!("v1.30.{kubelet}"),
            format!("5.15.{kernel}"),
            format!("Ubuntu {kernel}"),
            "containerd://1.7".into(),
            format!("m{}", pool % 2),
            "amd64".into(),
            format!("{:08x}", chance.below(2)),
        ];
        let created = at(if chance.below(4) == 0 { -3600 } else { -864_000 });
        let mut row = Row {
            traits: Traits::of(said.each_ref().map(String::as_str), values),
            created: created.into(),
            ..Row::default()
        };
        let lately = |chance: &mut Chance| if chance.below(6) == 0 { -7_200 } else { -800_000 };
        restarted(&mut row, [lately(chance), lately(chance)]);
        row
    };
    (0..count).map(worker).collect()
}

fn crowd<'a>(values: &'a Values, rows: &'a [Row]) -> Crowd<'a> {
    Crowd::new(values, None, rows.iter().map(|row| Member { row, calico: None, hosts: None, counts: true }).collect())
}

/// These fail since then.
fn since(failing: &[usize], then: Timestamp) -> Vec<Failing> {
    failing.iter().map(|at| (*at, then)).collect()
}

impl Crowd<'_> {
    /// What is suspected when these fail, all since then.
    fn found(&self, failing: &[usize], then: Timestamp) -> Vec<Suspect> {
        self.suspects(&since(failing, then))
    }
}

fn with<'a>(rows: &'a [Row], values: &'a Values, value: &'a str) -> impl Iterator<Item = usize> + 'a {
    let has =
        move |row: &Row| row.traits.numbers().any(|number| values.get(number).is_some_and(|(_, text)| text == value));
    rows.iter().enumerate().filter(move |(_, row)| has(row)).map(|(at, _)| at)
}

fn first_sentence(suspects: &[Suspect]) -> &str {
    suspects.first().map_or("", |suspect| &suspect.sentence)
}

#[test]
fn a_planted_cause_is_found_at_every_size() {
    for (size, spared) in [(50, 1), (500, 9), (5_000, 90)] {
        let (mut values, mut chance) = (Values::default(), Chance(7));
        let rows = workers(size, &mut chance, &mut values);
        let mut failing: Vec<usize> = with(&rows, &values, "p3").collect();
        let all = failing.len();
        failing.truncate(all - spared);
        let suspects = crowd(&values, &rows).found(&failing, at(0));
        let expected = format!("{} of {all} in pool p3 fail, 0 of {} elsewhere", all - spared, size - all);
        assert_eq!(first_sentence(&suspects), expected, "{size}");
        assert!(suspects[0].p < 0.001, "{suspects:?}");
    }
}

#[test]
fn among_five_workers_chance_cannot_be_told_from_a_cause() {
    let (mut values, mut chance) = (Values::default(), Chance(7));
    let mut rows = workers(5, &mut chance, &mut values);
    for (number, row) in rows.iter_mut().enumerate() {
        let pool = if number < 3 { "a" } else { "b" };
        row.traits = Traits::of([pool, "", "", "", "", "", "", "", "", ""], &mut values);
    }
    // 3 of 3 here and 0 of 2 there happens in one of ten draws.
    assert!((tail(&crowd(&values, &rows).ln_factorials, 3, 3, 3, 5) - 0.1).abs() < 1e-9);
    assert!(crowd(&values, &rows).found(&[0, 1, 2], at(0)).is_empty());
}

#[test]
fn what_happened_lately_is_found() {
    let (mut values, mut chance) = (Values::default(), Chance(3));
    let mut rows = workers(50, &mut chance, &mut values);
    for (number, row) in rows.iter_mut().enumerate() {
        row.created = at(-864_000).into();
        row.updated = (number % 5 == 0).then(|| at(-1800)).into();
    }
    let failing: Vec<usize> = (0..50).filter(|number| number % 5 == 0).collect();
    let suspects = crowd(&values, &rows).found(&failing, at(0));
    assert_eq!(first_sentence(&suspects), "10 of 10 updated since 2026-11-20T10:00:00Z fail, 0 of 40 elsewhere");
    rows[0].updated = at(-90_000).into();
    assert!(
        first_sentence(&crowd(&values, &rows).found(&failing, at(0))).starts_with("9 of 9 updated"),
        "a day before is too long ago"
    );
}

/// What its agent says of when its kubelet and its runtime were started.
fn restarted(row: &mut Row, [kubelet, runtime]: [i64; 2]) {
    let said = format!("started={}.{}", at(kubelet).as_second(), at(runtime).as_second());
    row.restarts = Restarts::told(&said, Some(at(-900_000)), None, at(7_200));
}

#[test]
fn what_was_updated_before_anybody_looked_was_started_anew() {
    const OLD: i64 = -800_000;
    for size in [50, 500, 5_000] {
        let (mut values, mut chance) = (Values::default(), Chance(13));
        let mut rows = workers(size, &mut chance, &mut values);
        for (number, row) in rows.iter_mut().enumerate() {
            // The runtime of others was restarted too.
            let runtime = if number % 3 == 0 { -3_600 } else { OLD };
            restarted(row, [if number % 5 == 0 { -1_800 } else { OLD }, runtime]);
        }
        let failing: Vec<usize> = (0..size).filter(|number| number % 5 == 0).collect();
        let (hit, others) = (size / 5, size - size / 5);
        let expected = |kind: &str| {
            format!("{hit} of {hit} with {kind} restarted since 2026-11-20T10:00:00Z fail, 0 of {others} elsewhere")
        };
        let suspects = crowd(&values, &rows).found(&failing, at(0));
        assert_eq!((first_sentence(&suspects), suspects.len()), (&*expected("kubelet"), 1), "{size}");
        assert_eq!(suspects[0].attribute, "kubelet restarted");
        for (number, row) in rows.iter_mut().enumerate() {
            restarted(row, [OLD, if number % 5 == 0 { -1_800 } else { OLD }]);
        }
        assert_eq!(first_sentence(&crowd(&values, &rows).found(&failing, at(0))), expected("runtime"));
        for (number, row) in rows.iter_mut().enumerate() {
            restarted(row, [if number % 5 == 0 { -90_000 } else { OLD }; 2]);
        }
        assert!(crowd(&values, &rows).found(&failing, at(0)).is_empty(), "a day before is too long ago");
    }
}

#[test]
fn a_restart_to_repair_a_worker_is_no_cause_and_one_that_replaces_what_runs_is() {
    let (mut values, mut chance) = (Values::default(), Chance(17));
    let mut rows = workers(50, &mut chance, &mut values);
    for row in &mut rows {
        restarted(row, [-800_000; 2]);
    }
    let failing: Vec<usize> = (0..50).filter(|number| number % 5 == 0).collect();
    let told = |second: i64| {
        for at in &failing {
            restarted(&mut rows[*at], [second, -800_000]);
        }
        !crowd(&values, &rows).found(&failing, at(0)).is_empty()
    };
    assert_eq!([-1, 60, 61, 3_600].map(told), [true, true, false, false]);
    // One after the other: each fails when it is updated.
    let rolled: Vec<Failing> = failing.iter().zip(0..).map(|(place, turn)| (*place, at(turn * 600))).collect();
    for (place, began) in &rolled {
        restarted(&mut rows[*place], [began.as_second() - at(0).as_second(); 2]);
    }
    let suspects = crowd(&values, &rows).suspects(&rolled);
    assert!(first_sentence(&suspects).starts_with("10 of 10 with kubelet restarted since"), "{suspects:?}");
    assert_eq!(suspects.len(), 1, "both were on the same workers");
    for (place, _) in &rolled {
        rows[*place].updated = at(0).into();
    }
    let suspects = crowd(&values, &rows).suspects(&rolled);
    assert!(first_sentence(&suspects).starts_with("10 of 10 updated since"), "{suspects:?}");
    assert_eq!(suspects.len(), 1, "the update was seen");
}

#[test]
fn a_cni_configuration_and_an_installation_are_found_at_every_size() {
    for size in [50, 500, 5_000] {
        let (mut values, mut chance) = (Values::default(), Chance(9));
        let mut rows = workers(size, &mut chance, &mut values);
        for (number, row) in rows.iter_mut().enumerate() {
            row.traits.cni(if number % 5 == 0 { "0badc0de" } else { "00000001" }, &mut values);
        }
        let failing: Vec<usize> = (0..size).filter(|number| number % 5 == 0).collect();
        let (hit, others) = (size / 5, size - size / 5);
        let suspects = crowd(&values, &rows).found(&failing, at(0));
        let expected = format!("{hit} of {hit} with CNI configuration 0badc0de fail, 0 of {others} elsewhere");
        assert_eq!(first_sentence(&suspects), expected);
        for (number, row) in rows.iter_mut().enumerate() {
            row.traits.cni("00000001", &mut values);
            row.reloaded = (number % 5 == 0).then(|| at(-1800)).into();
        }
        let suspects = crowd(&values, &rows).found(&failing, at(0));
        let expected = format!("{hit} of {hit} reloaded since 2026-11-20T10:00:00Z fail, 0 of {others} elsewhere");
        assert_eq!(first_sentence(&suspects), expected);
    }
}

#[test]
fn that_somebody_worked_on_workers_is_suspected_and_a_cordon_because_they_fail_is_not() {
    let (mut values, mut chance) = (Values::default(), Chance(23));
    let mut rows = workers(50, &mut chance, &mut values);
    let failing: Vec<usize> = (0..50).filter(|number| number % 5 == 0).collect();
    let mut found = |second: i64| {
        for (number, row) in rows.iter_mut().enumerate() {
            row.cordoned_since = (number % 5 == 0).then(|| at(second)).into();
        }
        crowd(&values, &rows).found(&failing, at(0)).first().map(|suspect| suspect.sentence.clone())
    };
    let expected = "10 of 10 cordoned since 2026-11-20T10:00:00Z fail, 0 of 40 elsewhere";
    assert_eq!(found(-1800).as_deref(), Some(expected));
    assert_eq!(found(600), None, "to repair them");
    assert_eq!(found(-90_000), None, "a day before is too long ago");
}

#[test]
fn a_version_of_calico_is_a_value_like_the_others() {
    let (mut values, mut chance) = (Values::default(), Chance(5));
    let rows = workers(40, &mut chance, &mut values);
    let member = |(number, row)| Member {
        row,
        calico: Some(if number < 12 { "v3.28.1" } else { "v3.27.0" }),
        hosts: None,
        counts: true,
    };
    let crowd = Crowd::new(&values, None, rows.iter().enumerate().map(member).collect());
    let suspects = crowd.found(&(0..12).collect::<Vec<_>>(), at(0));
    assert_eq!(first_sentence(&suspects), "12 of 12 with Calico v3.28.1 fail, 0 of 28 elsewhere");
}

#[test]
fn what_is_on_all_workers_or_on_two_of_them_explains_nothing() {
    let mut values = Values::default();
    let mut rows = workers(30, &mut Chance(9), &mut values);
    for row in &mut rows {
        row.traits = Traits::of(["only", "one", "", "", "", "", "", "", "amd64", ""], &mut values);
        row.created = None.into();
    }
    assert!(crowd(&values, &rows).found(&[0, 1, 2, 3, 4], at(0)).is_empty());
    rows[0].traits = Traits::of(["other", "one", "", "", "", "", "", "", "", ""], &mut values);
    rows[1].traits = rows[0].traits;
    let crowd = crowd(&values, &rows);
    assert!(crowd.found(&[0, 1], at(0)).is_empty(), "two are too few");
    assert!(crowd.found(&(0..30).collect::<Vec<_>>(), at(0)).is_empty(), "all fail");
    assert!(crowd.found(&[], at(0)).is_empty());
}

#[test]
fn those_that_do_not_count_are_compared_only_when_they_fail() {
    let mut values = Values::default();
    let mut rows = workers(40, &mut Chance(11), &mut values);
    for (number, row) in rows.iter_mut().enumerate() {
        row.traits = Traits::of([if number < 14 { "x" } else { "y" }, "", "", "", "", "", "", "", "", ""], &mut values);
    }
    let member = |(number, row)| Member { row, calico: None, hosts: None, counts: number >= 4 };
    let crowd = Crowd::new(&values, None, rows.iter().enumerate().map(member).collect());
    // Of the four that do not count, two fail.
    let failing: Vec<usize> = (2..12).collect();
    assert_eq!(crowd.eligible(&since(&failing, at(0))), 38);
    assert_eq!(first_sentence(&crowd.found(&failing, at(0))), "10 of 12 in pool x fail, 0 of 26 elsewhere");
}

/// In clusters in which workers fail for no reason that is known, at most one in fifty has a suspect; the correction
/// alone would allow one in twenty. The rates are printed.
#[test]
#[expect(clippy::print_stdout, reason = "a figure for people")]
fn where_there_is_no_cause_none_is_suspected() {
    for (size, clusters) in [(5, 500), (12, 500), (50, 500), (500, 200), (5_000, 20)] {
        let (mut chance, mut wrong) = (Chance(0x5eed + size as u64), 0);
        for _ in 0..clusters {
            let mut values = Values::default();
            let rows = workers(size, &mut chance, &mut values);
            let share = 2 + chance.below(8);
            let failing: Vec<usize> = (0..size).filter(|_| chance.below(share) == 0).collect();
            wrong += usize::from(!crowd(&values, &rows).found(&failing, at(0)).is_empty());
        }
        println!("{size} workers: a cause in {wrong} of {clusters} clusters without one");
        assert!(wrong * 50 <= clusters, "{wrong} of {clusters} clusters of {size} workers");
    }
}

#[test]
fn the_tail_is_that_of_the_hypergeometric_distribution() {
    let rows = vec![Row::default(); 54];
    let values = Values::default();
    let ln = crowd(&values, &rows).ln_factorials;
    // Summed with exact fractions.
    for (hit, with, failing, total, expected) in [
        (1, 1, 1, 2, 0.5),
        (5, 20, 5, 49, 8.130_541_763e-03),
        (2, 10, 4, 20, 7.089_783_282e-01),
        (12, 14, 12, 54, 2.653_007_942e-10),
        (0, 3, 3, 9, 1.0),
        (4, 3, 5, 9, 0.0),
    ] {
        let p = tail(&ln, hit, with, failing, total);
        assert!((p - expected).abs() <= 1e-6 * expected, "{hit} {with} {failing} {total}: {p:e}, not {expected:e}");
    }
}

/// What runs on each of these workers.
fn running(owners: &[&str], on: impl Fn(usize) -> Vec<(u16, Option<Timestamp>)>, workers: usize) -> Hosted {
    let owners = owners.iter().map(|owner| (*owner).into()).collect();
    let on = (0..workers).map(|number| (format!("{number}").into(), on(number))).collect();
    Hosted { owners, on }
}

fn hosting<'a>(values: &'a Values, rows: &'a [Row], hosted: &'a Hosted) -> Crowd<'a> {
    let hosts = |number: usize| hosted.on.get(&*number.to_string()).map(Vec::as_slice);
    let member = |(number, row)| Member { row, calico: None, hosts: hosts(number), counts: true };
    Crowd::new(values, Some(hosted), rows.iter().enumerate().map(member).collect())
}

#[test]
fn what_runs_on_those_that_fail_is_found_and_what_runs_everywhere_is_not() {
    let (mut values, mut chance) = (Values::default(), Chance(21));
    let rows = workers(400, &mut chance, &mut values);
    // Of the 400, 48 were looked at; one of those that fail has no Pod of it, and one of the others has.
    let on = |number: usize| {
        let second = match number {
            0..15 => Some((1, Some(at(-600)))),
            15 => None,
            _ => (number == 16).then_some((1, Some(at(-86_400)))),
        };
        std::iter::once((0, None)).chain(second).collect()
    };
    let hosted = running(&["DaemonSet kube-system/kube-proxy", "Deployment guard/scanner"], on, 48);
    let failing: Vec<usize> = (0..16).collect();
    let suspects = hosting(&values, &rows, &hosted).found(&failing, at(0));
    assert_eq!(
        first_sentence(&suspects),
        "15 of 16 with Pods of Deployment guard/scanner fail, 1 of 32 elsewhere, of 48 looked at; they came to 15 within the hour before the first failure"
    );
    assert_eq!(
        (suspects[0].attribute.as_str(), suspects[0].value.as_str(), suspects.len()),
        ("Pods of", "Deployment guard/scanner", 1)
    );
    // On a third of the others too: it is no contrast.
    let spread =
        running(&["DaemonSet a/b"], |number| if number < 16 || number % 3 == 0 { vec![(0, None)] } else { vec![] }, 48);
    assert!(hosting(&values, &rows, &spread).found(&failing, at(0)).is_empty());
    let nobody = running(&["DaemonSet a/b"], |_| vec![(0, None)], 0);
    assert!(hosting(&values, &rows, &nobody).found(&failing, at(0)).is_empty(), "nothing was looked at");
}

/// With three hundred owners that run here and there for no reason, too.
#[test]
fn where_nothing_hosted_is_the_cause_none_is_suspected() {
    let (mut wrong, clusters) = (0, 100);
    for seed in 0..clusters {
        let (mut values, mut chance) = (Values::default(), Chance(0xbeef + seed));
        let rows = workers(60, &mut chance, &mut values);
        let names: Vec<String> = (0..300).map(|number| format!("Deployment a/{number}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let spread: Vec<Vec<(u16, Option<Timestamp>)>> =
            (0..48).map(|_| (0..300).filter(|_| chance.below(4) == 0).map(|owner| (owner, None)).collect()).collect();
        let hosted = running(&names, |number| spread[number].clone(), 48);
        let failing: Vec<usize> = (0..48).filter(|_| chance.below(3) == 0).collect();
        wrong += u64::from(!hosting(&values, &rows, &hosted).found(&failing, at(0)).is_empty());
    }
    assert!(wrong * 50 <= clusters, "{wrong} of {clusters}");
}

#[test]
fn a_typha_that_serves_them_is_found_at_every_size_and_one_that_serves_no_more_is_not() {
    let address = |last: u8| std::net::IpAddr::from([10, 0, 0, last]);
    for size in [50, 500, 5_000] {
        let (mut values, mut chance) = (Values::default(), Chance(11));
        let mut rows = workers(size, &mut chance, &mut values);
        let mut failing = Vec::new();
        for (number, row) in rows.iter_mut().enumerate() {
            // Felix is connected to one of five, and confd to the next.
            let own = u8::try_from(number % 5).expect("few");
            row.traits.served_by([address(own), address((own + 1) % 5)].into_iter(), &mut values);
            if own == 2 || own == 1 {
                failing.push(number);
            }
        }
        let (hit, others) = (failing.len(), size - failing.len());
        let expected = format!("{hit} of {hit} with Typha 10.0.0.2 fail, 0 of {others} elsewhere");
        let suspects = crowd(&values, &rows).found(&failing, at(0));
        assert_eq!(first_sentence(&suspects), expected);
        assert_eq!((&*suspects[0].attribute, &*suspects[0].value), ("Typha", "10.0.0.2"));
        for row in &mut rows {
            row.traits.served_by(std::iter::empty(), &mut values);
        }
        assert!(crowd(&values, &rows).found(&failing, at(0)).is_empty(), "nobody says that they are connected");
        for row in &mut rows {
            row.traits.served_by(std::iter::once(address(2)), &mut values);
        }
        assert!(crowd(&values, &rows).found(&failing, at(0)).is_empty(), "what all have explains nothing");
    }
}
