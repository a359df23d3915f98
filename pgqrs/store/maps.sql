-- Maps: see schema/postgres/0009_maps.sql for the tables.

-- name: add_map
insert into pgqrs_maps (name, step_name, queue_id, tolerated, of_share, created_at)
values (cast(:name as text), cast(:step as text), cast(:queue_id as bigint), cast(:tolerated as float), :of_share, {now})
on conflict (name) do nothing
returning id;

-- name: map_by_name
select j.id, j.step_name from pgqrs_maps j where j.name = :name;

-- name: map_row
select j.name, j.step_name, j.queue_id, j.status, j.total, j.fed, j.tolerated, j.of_share, {seconds since j.created_at}
from pgqrs_maps j
where j.id = :id;

-- name: lock_map
select j.fed, j.total, j.status from pgqrs_maps j where j.id = :id {lock j};

-- name: feed_map
-- Records a segment of the input. Returns no row if the map was ended meanwhile, or if another
-- program has recorded these items.
update pgqrs_maps set fed = :upto
where id = :id and fed = :first and total is null and status = 'RUNNING'
returning id;

-- name: add_input
insert into pgqrs_map_inputs (map_id, first, count, data)
select :id, r.first, r.count, r.data
from {rows: first bigint, count int, data text};

-- name: add_range
-- Enqueues messages for ranges of a map's items. `add_places` says which range each is.
insert into pgqrs_messages (queue_id, payload, vt, enqueued_at, read_ct)
select j.queue_id, r.payload, {now}, {now}, 0
from {rows: payload json}
join pgqrs_maps j on j.id = :id
returning id;

-- name: add_places
insert into pgqrs_map_ranges (message_id, map_id, first, upto)
select r.message_id, :id, r.first, r.upto
from {rows: message_id bigint, first bigint, upto bigint};

-- name: end_input
update pgqrs_maps set total = fed where id = :id and total is null;

-- name: set_map_status
update pgqrs_maps set status = :status where id = :id;

-- name: archive_ranges
-- Ranges of the map that nobody holds.
update pgqrs_messages set archived_at = {now}
where id in (select g.message_id from pgqrs_map_ranges g where g.map_id = :id)
  and archived_at is null and consumer_worker_id is null;

-- name: open_ranges
select g.first, g.upto, m.consumer_worker_id is not null
from pgqrs_map_ranges g
join pgqrs_messages m on m.id = g.message_id
where g.map_id = :id and m.archived_at is null
order by g.first;

-- name: map_counts
select coalesce(sum(p.done), 0), coalesce(sum(p.failed), 0), coalesce(sum(p.seconds), 0.0),
       (select count(*) from pgqrs_map_tries t where t.map_id = :id)
from pgqrs_map_parts p
where p.map_id = :id;

-- name: inputs_of
select i.first, i.count, i.data
from pgqrs_map_inputs i
where i.map_id = :id and i.first >= :first and i.first < :upto
order by i.first;

-- name: input_at
select i.first, i.count, i.data
from pgqrs_map_inputs i
where i.map_id = :id and i.first <= :item
order by i.first desc
limit 1;

-- name: segments_of
select i.first, i.count from pgqrs_map_inputs i where i.map_id = :id order by i.first;

-- name: outcome_ranges
select o.first, o.count from pgqrs_map_outcomes o where o.map_id = :id order by o.first;

-- name: outcomes_since
select o.first, o.count
from pgqrs_map_outcomes o
where o.map_id = :id and o.ended_at >= {now - :ago_s}
order by o.ended_at, o.first;

-- name: outcomes_from
-- Outcomes in the order of their items.
select o.first, o.count, o.took, o.data
from pgqrs_map_outcomes o
where o.map_id = :id and o.first >= :first
order by o.first
limit :limit;

-- name: outcomes_at
select o.first, o.count, o.took, o.data
from {rows: first bigint}
join pgqrs_map_outcomes o on o.map_id = :id and o.first = r.first;

-- name: failed_outcomes
select o.first, o.count, o.took, o.data
from pgqrs_map_outcomes o
where o.map_id = :id and o.failed > 0 and o.first >= :first
order by o.first
limit :limit;

-- name: drop_outcomes
delete from pgqrs_map_outcomes
where map_id = :id and first in (select r.first from {rows: first bigint});

-- name: put_outcomes
insert into pgqrs_map_outcomes (map_id, first, count, failed, took, data, ended_at)
select :id, r.first, r.count, r.failed, r.took, r.data, {now}
from {rows: first bigint, count int, failed int, took text, data text};

-- name: uncount
-- Failed items that are tried again no longer count. The parts are summed, so any part will do.
update pgqrs_map_parts set failed = failed - :failed
where map_id = :id and consumer_id = (select min(p.consumer_id) from pgqrs_map_parts p where p.map_id = :id);

-- name: range_inputs
-- The inputs of claimed ranges. A range is within one segment.
select r.message_id, i.first, i.data
from {rows: message_id bigint, map_id bigint, first bigint}
join pgqrs_map_inputs i on i.map_id = r.map_id
    and i.first = (select max(x.first) from pgqrs_map_inputs x where x.map_id = r.map_id and x.first <= r.first);

-- name: range_outcomes
-- A row of outcomes has at most 1,000 items, and may begin before the range: a range is also cut
-- between items that have ended.
select r.message_id, o.first, o.count
from {rows: message_id bigint, map_id bigint, first bigint, upto bigint}
join pgqrs_map_outcomes o
    on o.map_id = r.map_id and o.first > r.first - 1000 and o.first < r.upto and o.first + o.count > r.first;

-- name: range_tries
select r.message_id, t.item, t.tries, t.error, {seconds since t.retry_at}
from {rows: message_id bigint, map_id bigint, first bigint, upto bigint}
join pgqrs_map_tries t on t.map_id = r.map_id and t.item >= r.first and t.item < r.upto;

-- name: range_places
select g.message_id, g.map_id, g.first, g.upto
from {rows: message_id bigint}
join pgqrs_map_ranges g on g.message_id = r.message_id;

-- name: range_states
-- Whether the maps of these messages still run.
select r.message_id, case when j.status = 'RUNNING' then 'RUNNING' else 'CANCELLING' end
from {rows: message_id bigint}
join pgqrs_map_ranges g on g.message_id = r.message_id
join pgqrs_maps j on j.id = g.map_id;

-- name: save_outcomes
-- An item that has an outcome keeps it.
insert into pgqrs_map_outcomes (map_id, first, count, failed, took, data, ended_at)
select r.map_id, r.first, r.count, r.failed, r.took, r.data, {now}
from {rows: map_id bigint, first bigint, count int, failed int, took text, data text}
where not exists (
    select 1 from pgqrs_map_outcomes o
    where o.map_id = r.map_id
      and o.first = (select max(x.first) from pgqrs_map_outcomes x where x.map_id = r.map_id and x.first <= r.first)
      and o.first + o.count > r.first)
on conflict (map_id, first) do nothing
returning map_id, first, count, failed;

-- name: count_outcomes
insert into pgqrs_map_parts as p (map_id, consumer_id, done, failed, seconds)
select r.map_id, r.consumer_id, r.done, r.failed, r.seconds
from {rows: map_id bigint, consumer_id bigint, done bigint, failed bigint, seconds float}
where true
on conflict (map_id, consumer_id) do update
set done = p.done + excluded.done, failed = p.failed + excluded.failed, seconds = p.seconds + excluded.seconds;

-- name: fail_maps
-- Ends maps with more failed items than they tolerate. A share is judged by the known total, or
-- after 100 items.
update pgqrs_maps as j
set status = 'FAILED'
from (select r.map_id as id, sum(p.failed) as failed, sum(p.done + p.failed) as ended
      from {rows: map_id bigint}
      join pgqrs_map_parts p on p.map_id = r.map_id
      group by r.map_id) as c
where j.id = c.id and j.status = 'RUNNING' and j.tolerated is not null
  and case when not j.of_share then c.failed > j.tolerated
           when j.total is not null then c.failed > j.tolerated * j.total
           else c.ended >= 100 and c.failed > j.tolerated * c.ended end
returning {j of pgqrs_maps}.id;

-- name: drop_ranges
-- Ranges of failed maps that nobody holds.
update pgqrs_messages as m set archived_at = {now}
from (select g.message_id from {rows: map_id bigint} join pgqrs_map_ranges g on g.map_id = r.map_id) as r
where m.id = r.message_id and m.archived_at is null and m.consumer_worker_id is null;

-- name: save_tries
insert into pgqrs_map_tries as t (map_id, item, tries, error, retry_at)
select r.map_id, r.item, r.tries, r.error, {now + r.retry_in_s}
from {rows: map_id bigint, item bigint, tries int, error text, retry_in_s float}
where true
on conflict (map_id, item) do update
set tries = excluded.tries, error = excluded.error, retry_at = excluded.retry_at;

-- name: drop_tries
delete from pgqrs_map_tries
where (map_id, item) in (
    select r.map_id, r.item from {rows: map_id bigint, item bigint});

-- name: cut_range
-- The tail of a range becomes a message of its own, at the old one's place in the queue. A repetition
-- finds the range cut already.
insert into pgqrs_messages (queue_id, payload, vt, enqueued_at, read_ct)
select m.queue_id, m.payload, m.vt, m.enqueued_at, 0
from pgqrs_messages m
join pgqrs_map_ranges g on g.message_id = m.id
where m.id = :message_id and g.first < :at and g.upto > :at
returning id;

-- name: place_tail
insert into pgqrs_map_ranges (message_id, map_id, first, upto)
select :tail_id, g.map_id, :at, g.upto from pgqrs_map_ranges g where g.message_id = :message_id;

-- name: shorten_range
update pgqrs_map_ranges set upto = :at where message_id = :message_id and upto > :at;
