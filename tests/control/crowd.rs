//! Many at once.

use crate::rig::{IMAGE, Line, Rig};

#[test]
fn a_hundred_clients_some_of_whom_never_read_have_their_answers_and_their_events() {
    let rig = Rig::on_tmpfs(&[]);
    let at_work = rig.under_io(rig.attach());
    let control = rig.control();
    let mut told: Vec<Line> = (0..40).map(|_| Line::subscribed(control, "null")).collect();
    let mut deaf: Vec<Line> = (0..20).map(|_| Line::subscribed(control, "null")).collect();
    for line in &mut deaf {
        // Answers that nobody takes.
        for _ in 0..20 {
            line.say(&::rig::operator::call("rpc.discover", "{}"));
        }
    }
    let mut asking: Vec<Line> = (0..40).map(|_| Line::open(control)).collect();
    for round in 0..10_u64 {
        for line in &mut asking {
            line.say(&::rig::operator::call("info", "{}"));
        }
        let bytes = IMAGE + (round + 1) * 4096;
        let mut one = Line::open(control);
        let resized = one.call("resize", &format!("{{\"bytes\":{bytes}}}"));
        assert_eq!(resized["result"]["size_bytes"], bytes, "{resized}");
        for line in &mut asking {
            let answer = line.hear();
            assert!(answer["result"]["pid"].is_u64(), "{answer}");
        }
        for line in &mut told {
            let event = line.until("resized").pop().unwrap();
            assert_eq!(event["size_bytes"], bytes, "{event}");
            assert_eq!(event["lost"], 0, "{event}");
        }
    }
    drop(at_work);
}
