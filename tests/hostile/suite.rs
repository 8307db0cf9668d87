//! Many attacks on one process, one after the other: after each of them the
//! same process serves a correct front-end, holds no more than before, and
//! every byte of the image that nobody was to write is what it was.
//!
//! `EXTENTD_TEST_CASE=part of a name` runs some of them only.

mod compromised;
pub mod resources;
pub mod site;
mod target;

use std::any::Any;
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use self::site::Site;
use self::target::{Target, Way};
use crate::cases;

/// Fewer cases are no suite.
const FEWEST: usize = 200;

/// One attack, by a sentence that says what it tries.
pub struct Case {
    pub name: String,
    /// Where not everything is tried: its place among many that are alike.
    alike: Option<usize>,
    /// Only the end of the attacker's process ends what it does.
    lasting: bool,
    attack: Box<Attack>,
}

/// What it returns stays open for as long as the attacker lives.
type Attack = dyn Fn(&Site) -> Box<dyn Any>;

impl Case {
    /// What it does ends with its process, which has to be another one.
    pub fn lasting(mut self, lasting: bool) -> Self {
        self.lasting = lasting;
        self
    }

    /// One of many that are alike.
    pub fn alike(mut self, index: usize) -> Self {
        self.alike = Some(index);
        self
    }

    pub fn run(&self, site: &Site) -> Box<dyn Any> {
        (self.attack)(site)
    }
}

/// A row of a table of cases.
pub fn case<T: 'static>(name: impl Into<String>, attack: impl Fn(&Site) -> T + 'static) -> Case {
    Case {
        name: name.into(),
        alike: None,
        lasting: false,
        attack: Box::new(move |site| Box::new(attack(site))),
    }
}

/// What a panic said.
fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
    text.unwrap_or_else(|| "it panicked".to_owned())
}

/// Whether it went well, or what it said.
fn tried<T>(what: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(what)).map_err(|panic| said(&*panic))
}

/// The cases that were asked for: all of them, but for a developer.
fn chosen(all: Vec<Case>) -> Vec<Case> {
    let Ok(part) = std::env::var("EXTENTD_TEST_CASE") else {
        return all;
    };
    let fits = |case: &Case| part.split('|').any(|part| case.name.contains(part));
    all.into_iter().filter(fits).collect()
}

/// All cases against a process of this kind.
fn stand(way: Way) {
    let Some(mut target) = Target::start(way) else {
        return;
    };
    let mut failures = Vec::new();
    let mut times = Vec::new();
    let site = &target.site;
    let tried_here =
        |case: &Case| !case.lasting && case.alike.is_none_or(|index| site.tries(index));
    let mut cases = chosen(cases::all());
    cases.retain(tried_here);
    for case in &cases {
        let start = Instant::now();
        let attacked = tried(|| drop(case.run(&target.site)));
        if let Err(why) = attacked {
            failures.push(format!("{}: the attack: {why}", case.name));
        }
        let attack = start.elapsed();
        match target.check() {
            Ok(served) => times.push((served, attack, &case.name)),
            Err(why) => {
                println!("FAILED {}: {why}", case.name);
                failures.push(format!("{}: {why}", case.name));
                target.restart();
            }
        }
    }
    let sum = |time: fn(&Row<'_>) -> Duration| times.iter().map(time).sum::<Duration>();
    println!(
        "{} cases {way:?}, {} failed; attacked {:?}, served {:?}",
        cases.len(),
        failures.len(),
        sum(|row| row.1),
        sum(|row| row.0)
    );
    tell_slowest("served", &mut times, |row| row.0);
    tell_slowest("attacked", &mut times, |row| row.1);
    if let Err(why) = tried(|| target.finish()) {
        failures.push(format!("at the end: {why}"));
    }
    assert!(failures.is_empty(), "\n{}\n", failures.join("\n"));
}

type Row<'a> = (Duration, Duration, &'a String);

fn tell_slowest(what: &str, rows: &mut [Row<'_>], time: fn(&Row<'_>) -> Duration) {
    rows.sort_by_key(|row| std::cmp::Reverse(time(row)));
    for row in rows.iter().take(5) {
        println!("{what} in {:?}: {}", time(row), row.2);
    }
}

#[test]
fn there_are_enough_cases_and_each_has_a_name_of_its_own() {
    let cases = cases::all();
    let names: BTreeSet<_> = cases.iter().map(|case| &case.name).collect();
    assert_eq!(names.len(), cases.len());
    // Everywhere, and not only where all of them are tried.
    let different = cases.iter().filter(|case| case.alike.is_none()).count();
    println!("{} cases, {different} of them everywhere", cases.len());
    assert!(different >= FEWEST, "{different}");
}

#[test]
fn every_case_is_withstood_by_the_file() {
    stand(Way::File);
}

#[test]
fn every_case_is_withstood_by_the_disk_path() {
    stand(Way::Disk);
}

#[test]
fn every_case_is_withstood_in_swap_grade_mode() {
    stand(Way::Swap);
}

#[test]
fn every_case_is_withstood_without_io_uring() {
    stand(Way::Plain);
}
