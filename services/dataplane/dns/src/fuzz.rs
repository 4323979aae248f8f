//! Messages that are nearly right: reading them ends, and what is answered to them can be read.

use crate::message::{
    MAX_MESSAGE, Question, Unreadable, id,
    tests::{SRV, alias, answer, ask, v4},
};
use weft_fuzz::Corpus;

fn corpus() -> Corpus {
    let chain = [
        ("www.test.", 300, alias("cdn.test.")),
        ("cdn.test.", 30, v4(1)),
        ("cdn.test.", 30, v4(2)),
    ];
    Corpus::of([
        ask("www.test.", 1),
        ask("a.very.long.name.of-labels.test.", 28),
        ask("_http._tcp.test.", SRV),
        answer("www.test.", &chain),
        answer("www.test.", &[]),
    ])
    // Pointers to the question's name, lengths, types.
    .words([
        &b"\xc0\x0c"[..],
        b"\xc0\x0d",
        b"\x3f",
        b"\x00\x01\x00\x01",
        b"\x00\x05",
        b"\xff\xff",
        b"\x00",
    ])
}

type Read = fn(&[u8]) -> Result<Question, Unreadable>;

fn holds(read: Read, bytes: &[u8]) {
    match read(bytes) {
        Ok(question) => {
            assert!(bytes.len() <= MAX_MESSAGE);
            for failure in [question.refused(), question.unanswered()] {
                assert_eq!(id(&failure), Some(question.id));
                assert_eq!(
                    question.read_answer(question.id, &failure).map(|a| a.addresses),
                    Ok(Vec::new())
                );
            }
            // Nobody's answer.
            assert!(question.read_answer(question.id, bytes).is_err());
        }
        Err(Unreadable::Answered(bytes)) => {
            assert!(bytes.len() >= 12 && bytes[2] & 0x80 != 0, "no answer: {bytes:?}");
        }
        Err(Unreadable::Silent) => {}
    }
    let asked = read(&ask("www.test.", 1)).expect("a question");
    if let Ok(answer) = asked.read_answer(7, bytes) {
        assert!(answer.code == 0 || answer.addresses.is_empty());
    }
}

#[test]
fn fuzz_message() {
    weft_fuzz::target!(corpus(), |bytes: &[u8]| holds(Question::read, bytes));
}

#[test]
fn the_target_notices_a_question_that_is_taken_for_another() {
    fn careless(bytes: &[u8]) -> Result<Question, Unreadable> {
        let mut question = Question::read(bytes)?;
        if question.kind() == "SRV" {
            question.name.clear();
        }
        Ok(question)
    }
    assert!(weft_fuzz::finds!(20_000, corpus(), |bytes: &[u8]| holds(
        careless, bytes
    )));
}
