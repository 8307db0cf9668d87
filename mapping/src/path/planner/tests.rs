use crate::{Extent, Reason};
use proptest::prelude::*;

use super::{Kind, Lookup, MAX_PIECES, Plan, Range, RawAlign, Room, Way, is_hole};

/// As the functions that fill a plan, with a new one.
fn read(range: Range<u64>, align: RawAlign, room: Room, find: impl FnMut(u64) -> Lookup) -> Plan {
    let mut plan = Plan::default();
    super::read(range, align, room, find, &mut plan);
    plan
}

fn write(
    range: Range<u64>,
    align: RawAlign,
    room: Room,
    find: impl FnMut(u64) -> Lookup,
) -> Option<Plan> {
    changes(range, align, room, Way::File, find)
}

fn zeroes(
    range: Range<u64>,
    align: RawAlign,
    room: Room,
    find: impl FnMut(u64) -> Lookup,
) -> Option<Plan> {
    changes(range, align, room, Way::Zeros, find)
}

fn changes(
    range: Range<u64>,
    align: RawAlign,
    room: Room,
    empty: Way,
    find: impl FnMut(u64) -> Lookup,
) -> Option<Plan> {
    let mut plan = Plan::default();
    super::change(range, align, room, empty, find, &mut plan).then_some(plan)
}

const UNIT: u64 = 512;
const WINDOW: u64 = 64;

/// What lies under each unit of a small file: `None` where nothing is loaded.
type Model = Vec<Option<(Kind, u64)>>;

/// The file reads zeros there without any I/O.
fn reads_zeros(kind: Kind) -> bool {
    matches!(kind, Kind::Hole | Kind::Unwritten)
}

fn kinds() -> impl Strategy<Value = Option<Kind>> {
    prop_oneof![
        6 => Just(Some(Kind::Written)),
        2 => Just(Some(Kind::Unwritten)),
        2 => Just(Some(Kind::Hole)),
        2 => Just(Some(Kind::Shared)),
        1 => Just(Some(Kind::Opaque(Reason::Changing))),
        1 => Just(None),
    ]
}

/// Runs of units; places on the disk go on behind the run before, or jump.
fn files() -> impl Strategy<Value = Model> {
    prop::collection::vec(
        (kinds(), 1usize..40, prop::option::of(1u64..1 << 30)),
        1..24,
    )
    .prop_map(|runs| {
        let mut disk = 1000;
        let mut model = Vec::new();
        for (kind, units, jump) in runs {
            disk = jump.unwrap_or(disk);
            for _ in 0..units {
                model.push(kind.map(|kind| (kind, disk * UNIT)));
                disk += 1;
            }
        }
        model
    })
}

/// The answer of a map whose extents end where windows do.
fn lookup(model: &Model, offset: u64) -> Lookup {
    let at = usize::try_from(offset / UNIT).unwrap();
    let Some((kind, place)) = model[at] else {
        return Lookup::Missing;
    };
    let joins = |a: usize| {
        !a.is_multiple_of(usize::try_from(WINDOW).unwrap())
            && model[a].is_some_and(|(k, d)| {
                model[a - 1].is_some_and(|(before, from)| before == k && from + UNIT == d)
            })
    };
    let mut first = at;
    while joins(first) {
        first -= 1;
    }
    let mut last = at + 1;
    while last < model.len() && joins(last) {
        last += 1;
    }
    let no_place = matches!(kind, Kind::Hole | Kind::Opaque(_));
    Lookup::Found(Extent {
        start: first as u64 * UNIT,
        len: (last - first) as u64 * UNIT,
        disk: if no_place {
            0
        } else {
            place - (at - first) as u64 * UNIT
        },
        kind,
    })
}

/// The way of each unit of a plan, with the place moved along.
fn ways(plan: &Plan, range: &Range<u64>) -> Vec<Way> {
    let mut at = range.start;
    let mut ways = Vec::new();
    for piece in plan.pieces() {
        assert!(piece.start == at && piece.end > at, "pieces are in order");
        let begin = at;
        while at < piece.end {
            ways.push(match piece.way {
                Way::Disk(disk) => Way::Disk(disk + at - begin),
                other => other,
            });
            at += UNIT;
        }
    }
    assert_eq!(at, range.end);
    ways
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn every_byte_goes_where_the_table_says(
        model in files(), start in 0usize..900, len in 1usize..300,
        read_align in prop_oneof![Just(512u64), Just(4096)], write_align in prop_oneof![Just(512u64), Just(4096)],
    ) {
        let start = start % model.len();
        let end = (start + len).min(model.len());
        let range = start as u64 * UNIT..end as u64 * UNIT;
        let align = RawAlign { read: read_align, write: write_align };
        let find = |at| lookup(&model, at);
        let under = &model[start..end];

        let plan = read(range.clone(), align, Room::Whole, find);
        for (unit, way) in under.iter().zip(ways(&plan, &range)) {
            match way {
                Way::File => {}
                Way::Zeros => prop_assert!(unit.is_some_and(|(kind, _)| reads_zeros(kind))),
                Way::Disk(disk) => prop_assert!(
                    unit.is_some_and(|(kind, place)| kind.on_disk() && place == disk)),
            }
        }
        let kinds: Option<Vec<Kind>> = under.iter().map(|unit| unit.map(|(kind, _)| kind)).collect();
        // Raw I/O is aligned, and what is simple does not go by the file for nothing.
        let mut at = range.start;
        for piece in plan.pieces() {
            if let Way::Disk(disk) = piece.way {
                prop_assert!((disk | at | piece.end).is_multiple_of(read_align));
            }
            at = piece.end;
        }
        if kinds.as_ref().is_some_and(|kinds| kinds.iter().all(|kind| reads_zeros(*kind))) {
            prop_assert!(ways(&plan, &range).iter().all(|way| *way == Way::Zeros) || plan.pieces().len() == 1);
        }

        let plan = write(range.clone(), align, Room::Whole, find);
        if let Some(plan) = &plan {
            for (unit, way) in under.iter().zip(ways(plan, &range)) {
                prop_assert_eq!(Some(way), unit.map(|(_, place)| Way::Disk(place)));
                prop_assert!(unit.is_some_and(|(kind, _)| kind == Kind::Written));
            }
        }
        let contiguous = under.windows(2).all(|pair| match pair {
            [Some((_, a)), Some((_, b))] => a + UNIT == *b,
            _ => false,
        });
        if kinds.as_ref().is_some_and(|kinds| kinds.iter().all(|kind| *kind == Kind::Written))
            && contiguous && write_align == UNIT
        {
            prop_assert_eq!(plan.map(|plan| plan.pieces().len()), Some(1), "windows do not cut a plan");
        }

        if let Some(plan) = zeroes(range.clone(), align, Room::Whole, find) {
            for (unit, way) in under.iter().zip(ways(&plan, &range)) {
                match way {
                    Way::File => prop_assert!(false, "zeros by the file are not planned in part"),
                    Way::Zeros => prop_assert!(unit.is_some_and(|(kind, _)| reads_zeros(kind))),
                    Way::Disk(disk) => prop_assert_eq!(*unit, Some((Kind::Written, disk))),
                }
            }
        }

        let hole = under.iter().all(|unit| unit.is_some_and(|(kind, _)| kind == Kind::Hole));
        prop_assert_eq!(is_hole(range, find), hole);
    }
}

#[test]
fn a_request_over_too_many_extents_goes_by_the_file() {
    let model: Model = (0..64).map(|at| Some((Kind::Written, at * 8192))).collect();
    let align = RawAlign {
        read: 512,
        write: 512,
    };
    let find = |at| lookup(&model, at);
    let most = MAX_PIECES as u64 * UNIT;
    let more = 0..most + UNIT;
    for room in [Room::Whole, Room::Part] {
        assert_eq!(read(0..most, align, room, find).pieces().len(), MAX_PIECES);
        let plan = write(0..most, align, room, find).unwrap();
        assert_eq!(plan.pieces().len(), MAX_PIECES);
    }
    let plan = read(more.clone(), align, Room::Whole, find);
    let mut by_file = Plan::default();
    by_file.by_file(more.clone());
    assert_eq!(plan.pieces(), by_file.pieces());
    assert!(write(more.clone(), align, Room::Whole, find).is_none());
    // Or its beginning is planned, and nothing behind it.
    for plan in [
        read(more.clone(), align, Room::Part, find),
        write(more.clone(), align, Room::Part, find).unwrap(),
        zeroes(more, align, Room::Part, find).unwrap(),
    ] {
        assert_eq!(plan.pieces().len(), MAX_PIECES);
        assert_eq!(ways(&plan, &(0..most)).len(), MAX_PIECES);
        assert_eq!(plan.piece_at(most), None);
    }
}

#[test]
fn an_extent_elsewhere_than_asked_for_is_not_believed() {
    let align = RawAlign {
        read: 512,
        write: 512,
    };
    let wrong = |_| {
        Lookup::Found(Extent {
            start: 8192,
            len: 512,
            disk: 4096,
            kind: Kind::Written,
        })
    };
    assert!(write(0..512, align, Room::Whole, wrong).is_none());
    assert!(!read(0..512, align, Room::Part, wrong).uses_map());
    assert!(!is_hole(0..512, wrong));
}
