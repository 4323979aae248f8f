//! Mistakes to make on purpose, one at a time, in tests of the tests. In the product none is ever made and
//! no code for it remains.

#[cfg(test)]
pub(crate) use made::{ALL, made, making};

/// One mistake, named by what is wrong then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(dead_code, reason = "all are listed and made in tests only")]
pub(crate) enum Fault {
    EmptyListMeansAnybody,
    PortsAreIgnored,
    DenyRuleAllows,
    DefaultDenyIsNotOverridden,
    AuthenticationIsForgotten,
    RequestsAreForgotten,
    MessageTypeIsOffByOne,
    HolesAreForgotten,
    UnknownIsNotInCluster,
    AnyProtocolIsTcp,
    WorldIpv4IsWorld,
    WorldByLabelIsForgotten,
    NotInNeedsTheLabel,
    PeersOfEveryNamespace,
    SubjectsOfEveryNamespace,
    SourceOfLabelIsIgnored,
    LastPortIsExcluded,
    RangeMeansInsideToo,
    WildcardIsNotProbed,
    OneRedirectSuffices,
    AllowBeatsDeny,
    BlockIsTooLarge,
    HolesAreInTheImage,
    WorldIsWithoutRanges,
    FirstOfAKeyWins,
    ShapeIsNotSaid,
    RangesOfAnybodyAreNotAsked,
    HolesHaveNoNumber,
    ShortestRangeWins,
    RequestIsNotAnchored,
    QueryIsNotJudged,
    PortOfHostIsNotJudged,
    MethodIsIgnored,
    PathIsIgnored,
    HostIsIgnored,
    HeaderValueIsIgnored,
    OneHeaderSuffices,
    FirstRequestRuleOnly,
    RequestRulesNarrow,
    UnknownRequestsPass,
    NamesAreTheSubjects,
    NamesAreOfAnyProtocol,
    GroupsByLabelAreForgotten,
    ServicesReachEverywhere,
    ProofIsSticky,
    WidestEntryCounts,
    OthersProofIsForgotten,
    ProxyComesLast,
    BlocksHaveNoLength,
    NamesAreForgotten,
    PatternCrossesDots,
    QueriesAreForgotten,
}

#[cfg(not(test))]
#[inline(always)]
pub(crate) const fn made(_: Fault) -> bool {
    false
}

#[cfg(test)]
mod made {
    use super::Fault;
    use std::cell::Cell;

    thread_local! {
        static NOW: Cell<Option<Fault>> = const { Cell::new(None) };
    }

    pub(crate) fn made(fault: Fault) -> bool {
        NOW.get() == Some(fault)
    }

    /// Makes it, in this thread, while `run` runs.
    pub(crate) fn making<T>(fault: Fault, run: impl FnOnce() -> T) -> T {
        NOW.set(Some(fault));
        let result = run();
        NOW.set(None);
        result
    }

    pub(crate) const ALL: [Fault; 52] = [
        Fault::EmptyListMeansAnybody,
        Fault::PortsAreIgnored,
        Fault::DenyRuleAllows,
        Fault::DefaultDenyIsNotOverridden,
        Fault::AuthenticationIsForgotten,
        Fault::RequestsAreForgotten,
        Fault::MessageTypeIsOffByOne,
        Fault::HolesAreForgotten,
        Fault::UnknownIsNotInCluster,
        Fault::AnyProtocolIsTcp,
        Fault::WorldIpv4IsWorld,
        Fault::WorldByLabelIsForgotten,
        Fault::NotInNeedsTheLabel,
        Fault::PeersOfEveryNamespace,
        Fault::SubjectsOfEveryNamespace,
        Fault::SourceOfLabelIsIgnored,
        Fault::LastPortIsExcluded,
        Fault::RangeMeansInsideToo,
        Fault::WildcardIsNotProbed,
        Fault::OneRedirectSuffices,
        Fault::AllowBeatsDeny,
        Fault::BlockIsTooLarge,
        Fault::HolesAreInTheImage,
        Fault::WorldIsWithoutRanges,
        Fault::FirstOfAKeyWins,
        Fault::ShapeIsNotSaid,
        Fault::RangesOfAnybodyAreNotAsked,
        Fault::HolesHaveNoNumber,
        Fault::ShortestRangeWins,
        Fault::RequestIsNotAnchored,
        Fault::QueryIsNotJudged,
        Fault::PortOfHostIsNotJudged,
        Fault::MethodIsIgnored,
        Fault::PathIsIgnored,
        Fault::HostIsIgnored,
        Fault::HeaderValueIsIgnored,
        Fault::OneHeaderSuffices,
        Fault::FirstRequestRuleOnly,
        Fault::RequestRulesNarrow,
        Fault::UnknownRequestsPass,
        Fault::NamesAreTheSubjects,
        Fault::NamesAreOfAnyProtocol,
        Fault::GroupsByLabelAreForgotten,
        Fault::ServicesReachEverywhere,
        Fault::ProofIsSticky,
        Fault::WidestEntryCounts,
        Fault::OthersProofIsForgotten,
        Fault::ProxyComesLast,
        Fault::BlocksHaveNoLength,
        Fault::NamesAreForgotten,
        Fault::PatternCrossesDots,
        Fault::QueriesAreForgotten,
    ];
}
