//! A request's body that is kept while it is sent, up to a bound: so that it can be sent again, and copied.
//!
//! It goes on to the backend as it comes. Whatever is tried next begins with what was kept and goes on with what is still
//! to come; what has grown beyond the bound is let go of, and can be neither repeated nor copied.

use std::{
    cell::{Cell, RefCell},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use ::http::HeaderMap;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::sync::oneshot;

use super::{BodyError, SharedRecord};

/// Bytes of one body that are kept, with what they cost besides.
pub(crate) const MOST: usize = 256 << 10;
/// Bytes that one worker keeps of all bodies.
const MOST_OF_ALL: usize = 64 << 20;

/// What a piece costs besides its bytes: a body may come in pieces of one.
const PIECE: usize = 128;

/// Bytes that a worker keeps now.
pub(crate) type Budget = Rc<Cell<usize>>;

/// A body, and what of it has come.
pub(crate) struct Kept<B = Incoming> {
    inner: B,
    record: SharedRecord,
    frames: Vec<Bytes>,
    size: usize,
    trailers: Option<HeaderMap>,
    state: State,
    /// The reader that began last: what was read before it is nobody's any more.
    newest: u64,
    waiting: Option<Waker>,
    copies: Vec<oneshot::Sender<Copied>>,
    budget: Budget,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// All that has come is kept, and more is to come.
    Coming,
    Whole,
    /// Not all of it is kept, or it has broken off.
    Lost,
}

/// Everything that a body was.
#[derive(Debug)]
pub(crate) struct Copied {
    pub(crate) frames: Vec<Bytes>,
    pub(crate) trailers: Option<HeaderMap>,
}

/// Reads a body from its beginning.
pub(crate) struct Reader<B = Incoming> {
    kept: Rc<RefCell<Kept<B>>>,
    number: u64,
    at: usize,
    has_told_trailers: bool,
}

impl<B: Body<Data = Bytes, Error = hyper::Error> + Unpin> Kept<B> {
    pub(crate) fn new(inner: B, record: SharedRecord, budget: Budget) -> Rc<RefCell<Self>> {
        Rc::new(RefCell::new(Self {
            inner,
            record,
            frames: Vec::new(),
            size: 0,
            trailers: None,
            state: State::Coming,
            newest: 0,
            waiting: None,
            copies: Vec::new(),
            budget,
        }))
    }

    /// Whether it can be read from its beginning once more.
    pub(crate) fn can_repeat(&self) -> bool {
        self.state != State::Lost
    }

    /// All of it, once it has come; an error if that cannot be.
    pub(crate) fn copy(&mut self) -> oneshot::Receiver<Copied> {
        let (copy, copied) = oneshot::channel();
        self.copies.push(copy);
        self.settle();
        copied
    }

    /// Lets go of what was kept.
    fn lose(&mut self) {
        self.state = State::Lost;
        self.frames = Vec::new();
        self.budget.set(self.budget.get() - self.size);
        self.size = 0;
        self.settle();
    }

    /// Hands out copies where it is known whether there can be any.
    fn settle(&mut self) {
        match self.state {
            State::Coming => {}
            State::Lost => self.copies.clear(),
            State::Whole => {
                for copy in self.copies.drain(..) {
                    let copied = Copied { frames: self.frames.clone(), trailers: self.trailers.clone() };
                    drop(copy.send(copied));
                }
            }
        }
    }

    /// Whether the frame is kept.
    fn keep(&mut self, data: &Bytes) -> bool {
        if self.state != State::Coming {
            return false;
        }
        let cost = data.len() + PIECE;
        if self.size + cost > MOST || self.budget.get() + cost > MOST_OF_ALL {
            self.lose();
            return false;
        }
        self.size += cost;
        self.budget.set(self.budget.get() + cost);
        // A copy: the frame may be a small part of a large buffer.
        self.frames.push(Bytes::copy_from_slice(data));
        true
    }

    fn end(&mut self) {
        if self.state == State::Coming {
            self.state = State::Whole;
            self.settle();
        }
    }
}

impl<B> Drop for Kept<B> {
    fn drop(&mut self) {
        self.budget.set(self.budget.get() - self.size);
    }
}

impl<B: Body<Data = Bytes, Error = hyper::Error> + Unpin> Reader<B> {
    /// Begins anew; whoever has read before reads no more.
    pub(crate) fn new(kept: &Rc<RefCell<Kept<B>>>) -> Self {
        let number = {
            let mut kept = kept.borrow_mut();
            kept.newest += 1;
            if let Some(waiting) = kept.waiting.take() {
                waiting.wake();
            }
            kept.newest
        };
        Self { kept: kept.clone(), number, at: 0, has_told_trailers: false }
    }
}

impl<B: Body<Data = Bytes, Error = hyper::Error> + Unpin> Body for Reader<B> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let mut held = this.kept.borrow_mut();
        let kept = &mut *held;
        if kept.newest != this.number {
            return Poll::Ready(Some(Err(BodyError::Superseded)));
        }
        if let Some(data) = kept.frames.get(this.at) {
            this.at += 1;
            return Poll::Ready(Some(Ok(Frame::data(data.clone()))));
        }
        if kept.state == State::Whole {
            let trailers = kept.trailers.clone().filter(|_| !this.has_told_trailers);
            this.has_told_trailers = true;
            return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
        }
        let polled = match Pin::new(&mut kept.inner).poll_frame(cx) {
            Poll::Pending => {
                kept.waiting = Some(cx.waker().clone());
                return Poll::Pending;
            }
            Poll::Ready(polled) => polled,
        };
        match &polled {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    kept.record.borrow_mut().received(data);
                    if kept.keep(data) {
                        this.at += 1;
                    }
                } else if let Some(trailers) = frame.trailers_ref() {
                    kept.trailers = Some(trailers.clone());
                    this.has_told_trailers = true;
                }
                if kept.inner.is_end_stream() {
                    kept.end();
                }
            }
            Some(Err(_)) => kept.lose(),
            None => kept.end(),
        }
        Poll::Ready(polled.map(|frame| frame.map_err(BodyError::Caller)))
    }

    fn is_end_stream(&self) -> bool {
        let kept = self.kept.borrow();
        let has_trailers = kept.trailers.is_some() && !self.has_told_trailers;
        match kept.state {
            State::Whole => self.at >= kept.frames.len() && !has_trailers,
            State::Coming => self.at >= kept.frames.len() && kept.inner.is_end_stream(),
            State::Lost => kept.inner.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        let kept = self.kept.borrow();
        let left: usize = kept.frames.iter().skip(self.at).map(Bytes::len).sum();
        let left = left as u64;
        if kept.state == State::Whole {
            return SizeHint::with_exact(left);
        }
        let coming = kept.inner.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(coming.lower() + left);
        if let Some(upper) = coming.upper() {
            hint.set_upper(upper + left);
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::VecDeque, future::poll_fn};

    use super::*;

    /// A caller's body, of which only some has come yet.
    #[derive(Default)]
    struct Said {
        frames: VecDeque<Frame<Bytes>>,
        ended: bool,
    }

    impl Body for Said {
        type Data = Bytes;
        type Error = hyper::Error;

        fn poll_frame(
            self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
            let this = self.get_mut();
            match this.frames.pop_front() {
                Some(frame) => Poll::Ready(Some(Ok(frame))),
                None if this.ended => Poll::Ready(None),
                None => {
                    cx.waker().wake_by_ref();
                    Poll::Pending
                }
            }
        }
    }

    fn kept(budget: &Budget) -> Rc<RefCell<Kept<Said>>> {
        let metrics = runtime::metrics::Metrics::new("waypoint");
        let log = runtime::logging::AccessLog::none();
        let requests = runtime::record::Requests::new(&metrics, log, Default::default());
        let record = requests.begin(([10, 0, 0, 1], 1).into(), "HTTP/1.1", "POST", "/");
        Kept::new(Said::default(), Rc::new(RefCell::new(record)), budget.clone())
    }

    fn says(kept: &Rc<RefCell<Kept<Said>>>, text: &'static [u8]) {
        kept.borrow_mut().inner.frames.push_back(Frame::data(Bytes::from_static(text)));
    }

    /// The next frame, `None` at the end; an error if there is none to be had now.
    fn next(reader: &mut Reader<Said>) -> Result<Option<Frame<Bytes>>, String> {
        let mut cx = Context::from_waker(Waker::noop());
        match Pin::new(reader).poll_frame(&mut cx) {
            Poll::Pending => Err("pending".to_owned()),
            Poll::Ready(None) => Ok(None),
            Poll::Ready(Some(Ok(frame))) => Ok(Some(frame)),
            Poll::Ready(Some(Err(error))) => Err(error.to_string()),
        }
    }

    fn text(frame: Result<Option<Frame<Bytes>>, String>) -> String {
        let data = frame.unwrap().unwrap().into_data().unwrap();
        String::from_utf8(data.to_vec()).unwrap()
    }

    #[test]
    fn what_has_come_is_read_again_and_then_what_is_still_to_come() {
        let budget = Budget::default();
        let kept = kept(&budget);
        let mut first = Reader::new(&kept);
        says(&kept, b"one");
        assert_eq!(text(next(&mut first)), "one");
        assert_eq!(next(&mut first).unwrap_err(), "pending");
        let copied = kept.borrow_mut().copy();
        let mut second = Reader::new(&kept);
        assert!(next(&mut first).unwrap_err().contains("again"), "the first one's try is over");
        assert_eq!(text(next(&mut second)), "one");
        says(&kept, b"two");
        let trailers: HeaderMap = [("a".parse().unwrap(), "b".parse().unwrap())].into_iter().collect();
        kept.borrow_mut().inner.frames.push_back(Frame::trailers(trailers));
        assert_eq!(text(next(&mut second)), "two");
        assert!(next(&mut second).unwrap().unwrap().is_trailers());
        kept.borrow_mut().inner.ended = true;
        assert!(next(&mut second).unwrap().is_none() && kept.borrow().can_repeat());
        let mut third = Reader::new(&kept);
        assert_eq!(third.size_hint().exact(), Some(6));
        assert_eq!((text(next(&mut third)), text(next(&mut third))), ("one".into(), "two".into()));
        assert!(!third.is_end_stream() && next(&mut third).unwrap().unwrap().is_trailers());
        assert!(third.is_end_stream() && next(&mut third).unwrap().is_none());
        let copied = copied.blocking_recv().unwrap();
        assert_eq!((copied.frames.concat(), copied.trailers.is_some()), (b"onetwo".to_vec(), true));
        assert_eq!(budget.get(), 6 + 2 * PIECE);
        drop((kept, first, second, third));
        assert_eq!(budget.get(), 0);
    }

    #[test]
    fn what_outgrows_the_bound_goes_on_and_is_neither_repeated_nor_copied() {
        let budget = Budget::default();
        let kept = kept(&budget);
        let copied = kept.borrow_mut().copy();
        let mut reader = Reader::new(&kept);
        static LARGE: [u8; MOST - PIECE] = [b'x'; MOST - PIECE];
        says(&kept, &LARGE);
        assert_eq!(text(next(&mut reader)).len(), LARGE.len());
        assert!(kept.borrow().can_repeat() && budget.get() == MOST);
        says(&kept, b"more");
        says(&kept, b"last");
        assert_eq!(text(next(&mut reader)), "more");
        assert!(!kept.borrow().can_repeat() && budget.get() == 0);
        assert!(copied.blocking_recv().is_err());
        assert_eq!(text(next(&mut reader)), "last", "it goes on all the same");
        assert!(kept.borrow_mut().copy().blocking_recv().is_err());
    }

    #[test]
    fn a_body_in_many_small_pieces_is_bounded_by_what_they_cost() {
        let budget = Budget::default();
        let kept = kept(&budget);
        let mut reader = Reader::new(&kept);
        for _ in 0..MOST / PIECE {
            says(&kept, b"x");
            assert_eq!(text(next(&mut reader)), "x");
        }
        assert!(!kept.borrow().can_repeat() && budget.get() == 0);
    }

    #[test]
    fn all_bodies_of_a_worker_have_one_bound() {
        let budget = Budget::new(Cell::new(MOST_OF_ALL));
        let kept = kept(&budget);
        let mut reader = Reader::new(&kept);
        says(&kept, b"one");
        assert_eq!(text(next(&mut reader)), "one");
        assert!(!kept.borrow().can_repeat() && budget.get() == MOST_OF_ALL);
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_is_no_copy() {
        let budget = Budget::default();
        let kept = kept(&budget);
        let copied = kept.borrow_mut().copy();
        let mut reader = Reader::new(&kept);
        says(&kept, b"one");
        let frame = poll_fn(|cx| Pin::new(&mut reader).poll_frame(cx)).await;
        assert!(frame.is_some_and(|frame| frame.is_ok()));
        drop((reader, kept));
        assert!(copied.await.is_err());
    }
}
